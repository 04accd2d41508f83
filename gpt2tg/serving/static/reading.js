// "Read a text": where would the model not have expected a word?

import {byId, make} from "./dom.js";
import {say, tellError} from "./notices.js";
import {choiceOf, legend, percent, probabilityOf, readout, tokenLine, visible} from "./shading.js";
import {ask} from "./server.js";

const MOST_SURPRISING = 12;
const ALTERNATIVES = 5;

/** Return one word for each token that begins or is a surprise, the most surprising first. */
function surprises(tokens) {
  return tokens.map((token, index) => ({token, index}))
    .filter(({token}) => token.logprob !== null && /[\p{L}\p{N}]/u.test(token.text))
    .sort((a, b) => a.token.logprob - b.token.logprob).slice(0, MOST_SURPRISING);
}

/** Return the whole word around a token. */
function wordAround(tokens, index) {
  const isBound = text => /^[^\p{L}\p{N}’']/u.test(text);
  let first = index;
  while (first > 0 && !isBound(tokens[first].text) && !/[\s]$/.test(tokens[first - 1].text)) first -= 1;
  let last = index + 1;
  while (last < tokens.length && !isBound(tokens[last].text)) last += 1;
  return tokens.slice(first, last).map(token => token.text).join("").trim();
}

function details(token) {
  const box = byId("read-detail");
  if (token === null || token.logprob === null) {
    box.replaceChildren(make("p", {class: "hint", text: "The first word has nothing before it, so the model has no opinion of it."}));
    return;
  }
  const list = make("ul", {class: "bars"}, ...token.alternatives.map(other => {
    const item = make("li", {}, make("span", {text: visible(other.text), dir: "auto"}), make("span", {class: "number", text: percent(other.probability)}));
    item.style.setProperty("--share", `${100 * other.probability}%`);
    return item;
  }));
  box.replaceChildren(
    make("p", {class: "readout", text: readout(token), dir: "auto"}),
    make("p", {class: "hint", text: "What the model expected here:"}), list);
}

/** Return a sentence that explains the perplexity. */
function explanation({perplexity, bits_per_byte: bits, words}) {
  const choices = perplexity < 10 ? perplexity.toFixed(1) : Math.round(perplexity).toLocaleString("en");
  return [
    `Perplexity ${choices}: on average, the model was as unsure of each token as if it had to guess among ${choices} equally likely ones.`,
    ` Lower means more expected. ${words} words, ${bits.toFixed(2)} bits per byte.`,
  ];
}

function result(answer) {
  const {tokens} = answer;
  const [sentence, rest] = explanation(answer);
  const found = surprises(tokens);
  const line = tokenLine(tokens, details, "The text, each word shaded by how unexpected it is");
  const item = ({token, index}) => make("li", {}, make("button", {type: "button", class: "link", click: () => line.children[index].focus()},
    make("strong", {text: wordAround(tokens, index), dir: "auto"})),
    make("span", {class: "hint", text: ` ${percent(probabilityOf(token.logprob))}, ${choiceOf(token)}`}));
  byId("read-result").replaceChildren(
    make("p", {}, make("strong", {text: sentence}), rest),
    make("div", {class: "legend-line"}, legend(), make("span", {class: "hint", text: "Point at a word, or move through the text with the arrow keys."})),
    make("div", {class: "split"},
      make("div", {}, line),
      make("aside", {"aria-label": "Details"},
        make("div", {id: "read-detail", class: "card"}, make("p", {class: "hint", text: "The word that you point at is explained here."})),
        make("h2", {text: "Least expected"}),
        make("ol", {class: "surprises"}, ...found.map(item)))));
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
