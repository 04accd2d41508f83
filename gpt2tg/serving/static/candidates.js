// Several ways to go on, side by side, to choose from.

import {desk} from "./desk.js";
import {byId, make, onceAFrame} from "./dom.js";
import {paper} from "./paper.js";
import {readout, tokenLine} from "./shading.js";
import {asWords, countWords} from "./tree.js";
import {continueText, newSeed, showNode} from "./writing.js";

const section = byId("candidates");

/** What is drawn, so that nothing loses the focus without need. */
let drawn = "";

async function take(id) {
  await showNode(id);
  paper.focus();
}

function leave() {
  desk.candidates = [];
  draw();
  paper.focus();
}

function card(id, number) {
  const node = desk.nodes.get(id);
  const isWriting = Boolean(desk.writing);
  const numbers = make("p", {
    class: "hint readout",
    text: isWriting ? "The model writes …" : asWords(countWords(node.text)),
  });
  const text =
    isWriting || !node.tokens?.length
      ? make("p", {
          class: "tokens",
          dir: "auto",
          text: node.text || (isWriting ? "" : "(The model ended the text here.)"),
        })
      : tokenLine(node.tokens, token => (numbers.textContent = readout(token)), `Words of candidate ${number}`);
  return make(
    "article",
    {"aria-label": `Candidate ${number}`},
    make(
      "div",
      {class: "card-head"},
      make("h3", {text: String(number)}),
      make("button", {
        type: "button",
        class: "primary",
        text: "Take this one",
        "aria-label": `Take this one: candidate ${number}`,
        disabled: isWriting,
        click: () => take(id),
      }),
    ),
    text,
    numbers,
  );
}

/** Show the candidates, or nothing where there are none. */
function draw() {
  const next = `${desk.candidates.join()} ${Boolean(desk.writing)}`;
  if (next === drawn) return;
  drawn = next;
  section.hidden = desk.candidates.length === 0;
  if (section.hidden) {
    section.replaceChildren();
    return;
  }
  const count = desk.candidates.length;
  section.replaceChildren(
    make("h2", {text: "How shall it go on?", id: "candidates-title"}),
    make("p", {class: "hint", text: `Take one or press its number. The others stay as branches.`}),
    make("div", {class: "cards"}, ...desk.candidates.map((id, index) => card(id, index + 1))),
    make(
      "div",
      {class: "buttons"},
      make("button", {
        type: "button",
        text: `Write ${count} others`,
        disabled: Boolean(desk.writing),
        click: () => continueText({count, changes: {seed: newSeed()}}),
      }),
      make("button", {type: "button", text: "Take none", disabled: Boolean(desk.writing), click: leave}),
    ),
  );
}

/** Show candidates while they grow, and choose with the number keys. */
export function setUpCandidates() {
  const grow = onceAFrame(() => {
    const texts = section.querySelectorAll(".tokens");
    if (desk.writing)
      desk.candidates.forEach((id, index) => {
        const {text} = desk.nodes.get(id);
        if (texts[index] && texts[index].textContent !== text) texts[index].textContent = text;
      });
  });
  desk.on("growing", grow);
  desk.on("text nodes paper", draw);
  desk.on("writing", () => {
    draw();
    if (!desk.writing && !section.hidden) {
      section.scrollIntoView({block: "nearest"});
      section.querySelector("h2").tabIndex = -1;
      section.querySelector("h2").focus({preventScroll: true});
    }
  });
  section.addEventListener("keydown", event => {
    const id = desk.candidates[Number(event.key) - 1];
    if (id === undefined || desk.writing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    take(id);
  });
}
