// "Read a text": where would the model not have expected a word?

import {byId, make} from "./dom.js";
import {say, tellError} from "./notices.js";
import {choiceOf, legend, percent, probabilityOf, readout, tokenLine, visible} from "./shading.js";
import {ask} from "./server.js";
import {asWords} from "./tree.js";

const MOST_SURPRISING = 12;
// A token goes on with the word before it.
const [INSIDE, INSIDE_END] = [/^[\p{L}\p{N}\p{M}’']/u, /[\p{L}\p{N}\p{M}’']$/u];
const ALTERNATIVES = 5;

/**
 * Join tokens to words. The probability of a word is the product of those of its tokens.
 * @param {import("./tree.js").Token[]} tokens
 * @returns {{text: string, index: number, count: number, logprob: number}[]} words whose probability is known
 */
function wordsOf(tokens) {
  const words = [];
  let before = " ";
  tokens.forEach((token, index) => {
    const goesOn = INSIDE.test(token.text) && INSIDE_END.test(before);
    if (!goesOn) words.push({text: "", index, count: 0, logprob: 0});
    const word = words.at(-1);
    word.text += token.text;
    word.count += 1;
    word.logprob = word.logprob === null || token.logprob === null ? null : word.logprob + token.logprob;
    before = token.text || before;
  });
  return words.filter(word => word.logprob !== null && /[\p{L}\p{N}]/u.test(word.text));
}

/** Return the words that the model expected least. */
const surprises = tokens =>
  wordsOf(tokens)
    .sort((a, b) => a.logprob - b.logprob)
    .slice(0, MOST_SURPRISING);

function details(token) {
  const box = byId("read-detail");
  if (token === null || token.logprob === null) {
    box.replaceChildren(
      make("p", {class: "hint", text: "The model has no opinion of this word, because nothing is before it."}),
    );
    return;
  }
  const list = make(
    "ul",
    {class: "bars"},
    ...token.alternatives.map(other => {
      const item = make(
        "li",
        {},
        make("span", {text: visible(other.text), dir: "auto"}),
        make("span", {class: "number", text: percent(other.probability)}),
      );
      item.style.setProperty("--share", `${100 * other.probability}%`);
      return item;
    }),
  );
  box.replaceChildren(
    make("p", {class: "readout", text: readout(token), dir: "auto"}),
    make("p", {class: "hint", text: "What the model expected here:"}),
    list,
  );
}

/** Return a sentence that explains the perplexity. */
function explanation({perplexity, bits_per_byte: bits, words}) {
  if (perplexity === null) return ["The text is too short to say how expected it is.", ""];
  const choices = perplexity < 10 ? perplexity.toFixed(1) : Math.round(perplexity).toLocaleString("en");
  return [
    `Perplexity ${choices}: on average, the model was as unsure of each token ` +
      `as if it had to guess among ${choices} equally likely ones.`,
    ` Lower means more expected. ${asWords(words)}, ${bits.toFixed(2)} bits per byte.`,
  ];
}

function result(answer) {
  const {tokens} = answer;
  const [sentence, rest] = explanation(answer);
  const found = surprises(tokens);
  const line = tokenLine(tokens, details, "The text, each word shaded by how unexpected it is");
  const item = word =>
    make(
      "li",
      {},
      make(
        "button",
        {type: "button", class: "link", click: () => line.children[word.index].focus()},
        make("strong", {text: word.text.trim(), dir: "auto"}),
      ),
      make("span", {
        class: "hint",
        text: ` ${percent(probabilityOf(word.logprob))}${word.count === 1 ? `, ${choiceOf(tokens[word.index])}` : ""}`,
      }),
    );
  byId("read-result").replaceChildren(
    make("p", {}, make("strong", {text: sentence}), rest),
    make(
      "div",
      {class: "legend-line"},
      legend(),
      make("span", {class: "hint", text: "Point at a word, or move through the text with the arrow keys."}),
    ),
    make(
      "div",
      {class: "split"},
      make("div", {}, line),
      make(
        "aside",
        {"aria-label": "Details"},
        make(
          "div",
          {id: "read-detail", class: "card"},
          make("p", {class: "hint", text: "The word that you point at is explained here."}),
        ),
        make("h2", {text: "Least expected"}),
        make("ol", {class: "surprises"}, ...found.map(item)),
      ),
    ),
  );
  byId("read-result").scrollIntoView({block: "nearest"});
  say(sentence);
}

async function read() {
  const text = byId("read-text").value;
  if (!text.trim()) {
    byId("read-text").focus();
    return;
  }
  const button = byId("read-button");
  button.disabled = true;
  button.textContent = "Reading …";
  try {
    result(await ask("/api/score", {method: "POST", body: {text, alternatives: ALTERNATIVES}}));
  } catch (error) {
    tellError(error);
  } finally {
    button.disabled = false;
    button.textContent = "Read it";
  }
}

/** Make the page "Read a text" work. */
export function setUpReading() {
  byId("read-form").addEventListener("submit", event => {
    event.preventDefault();
    read();
  });
  byId("read-text").addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      read();
    }
  });
}
