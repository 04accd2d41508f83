// The other words that the model could have written in the place of a token.

import {desk} from "./desk.js";
import {byId, make} from "./dom.js";
import {notify} from "./notices.js";
import {goesOnWord, markPiece, paper, placeOf, tokenAt, viewOf} from "./paper.js";
import {choiceOf, percent, probabilityOf, visible} from "./shading.js";
import {takeAlternative} from "./writing.js";

const box = byId("alternatives");

/** Close the list. */
export function closeAlternatives() {
  if (box.hidden) return;
  if (box.contains(document.activeElement)) paper.focus();
  box.hidden = true;
  markPiece(null);
}

/**
 * Show the alternatives of the token at the caret.
 * @param {boolean} takesFocus whether the focus moves into the list
 */
function showAlternatives(takesFocus) {
  const piece = tokenAt(paper.selectionStart);
  if (!piece) {
    closeAlternatives();
    if (takesFocus) notify("Other words are known where the model wrote. Move into its words, then ask again.");
    return;
  }
  draw(piece);
  box.hidden = false;
  markPiece(piece);
  place(piece);
  if (takesFocus) (box.querySelector("li button:not(:disabled)") ?? box.querySelector("button")).focus();
}

/** The piece whose alternatives are shown. */
let shown = null;

function draw(piece) {
  shown = piece;
  const {token} = piece;
  const goesOn = goesOnWord(piece);
  const numbers = token.logprob === null ? "" : `${percent(probabilityOf(token.logprob))}, ${choiceOf(token)}`;
  const list = make("ul", {});
  token.alternatives.forEach((other, index) => list.append(make("li", {}, choice(piece, other, index, goesOn))));
  if (token.logprob !== null && !token.alternatives.some(other => other.text === token.text)) {
    const itself = {text: token.text, probability: probabilityOf(token.logprob)};
    list.append(make("li", {}, choice(piece, itself, -1, goesOn)));
  }
  box.replaceChildren(
    make("button", {type: "button", class: "close", "aria-label": "Close", text: "×", click: closeAlternatives}),
    make("h2", {id: "alternatives-title", text: visible(token.text, goesOn), dir: "auto"}),
    make("p", {class: "hint", text: numbers}),
    list,
    make("p", {class: "hint", text: "Taking one begins a new branch. These words stay in the old one."}),
  );
}

function choice(piece, other, index, goesOn) {
  const isTaken = other.text === piece.token.text && !other.is_special;
  const isPart = other.text.includes("\ufffd");
  const take = () => {
    closeAlternatives();
    paper.focus();
    takeAlternative(piece.node, piece.index, index);
  };
  const button = make(
    "button",
    {type: "button", disabled: isTaken || isPart, click: take},
    make("span", {
      text: other.is_special ? "(the text ends)" : isPart ? "(part of a character)" : visible(other.text, goesOn),
      dir: "auto",
    }),
    make("span", {
      class: "number",
      text: isTaken ? `${percent(other.probability)}, in the text` : percent(other.probability),
    }),
  );
  button.style.setProperty("--share", `${100 * other.probability}%`);
  return button;
}

/** Put the list under its token, or above it where there is no room. */
function place(piece) {
  const token = placeOf(piece);
  const {width, height} = box.getBoundingClientRect();
  const gap = 8;
  const floor = byId("actions").getBoundingClientRect().top;
  const isBelow = token.bottom + gap + height < floor || token.top < height + gap;
  const top = isBelow ? token.bottom + gap : token.top - gap - height;
  const left = Math.max(gap, Math.min(token.left, document.documentElement.clientWidth - width - gap));
  box.style.top = `${Math.max(gap, Math.min(top, window.innerHeight - height - gap)) + window.scrollY}px`;
  box.style.left = `${left + window.scrollX}px`;
}

function moveFocus(event) {
  const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
  if (event.key === "Escape") {
    event.stopPropagation();
    closeAlternatives();
  }
  if (!step) return;
  event.preventDefault();
  const buttons = [...box.querySelectorAll("li button:not(:disabled)")];
  const next = buttons.indexOf(document.activeElement) + step;
  buttons.at(Math.min(buttons.length - 1, Math.max(0, next)))?.focus();
}

/** Open the list on a click into shaded words and on Alt+Down. */
export function setUpAlternatives() {
  paper.addEventListener("click", () => {
    if (viewOf() === "odds" && paper.selectionStart === paper.selectionEnd && !desk.writing) showAlternatives(false);
    else closeAlternatives();
  });
  paper.addEventListener("keydown", event => {
    if (event.altKey && event.key === "ArrowDown") {
      event.preventDefault();
      showAlternatives(true);
    } else if (event.key !== "Alt" && event.key !== "Escape") closeAlternatives();
  });
  byId("other-words").addEventListener("click", () => showAlternatives(true));
  box.addEventListener("keydown", moveFocus);
  document.addEventListener("pointerdown", event => {
    if (!box.contains(event.target) && event.target !== paper && event.target.id !== "other-words") closeAlternatives();
  });
  window.addEventListener("resize", () => box.hidden || place(shown));
  desk.on("text writing nodes", closeAlternatives);
}
