// Two branches side by side, from the place where they part.

import {desk} from "./desk.js";
import {openDialog} from "./dialogs.js";
import {make} from "./dom.js";
import {legend, readout, tokenLine} from "./shading.js";
import {commonPrefix, piecesOf, shownText} from "./tree.js";
import {showNode} from "./writing.js";

/** How much of the common beginning is shown, in UTF-16 units. */
const SHARED = 240;

/** Return what follows the first `start` units of a branch, as tokens; typed words are tokens without a probability. */
function tokensAfter(id, start) {
  const text = shownText(desk.nodes, id);
  return piecesOf(desk.nodes, id, text)
    .filter(piece => piece.start + piece.text.length > start)
    .map(piece => {
      const part = piece.text.slice(Math.max(0, start - piece.start));
      const known = piece.token && part === piece.text ? piece.token : {logprob: null, rank: null, alternatives: []};
      return {...known, text: part};
    });
}

/** Return the number of bits that the model needs for each token, on average: the more, the more surprising. */
function meanBits(tokens) {
  const known = tokens.filter(token => token.logprob !== null);
  return known.length ? known.reduce((sum, token) => sum - token.logprob / Math.LN2, 0) / known.length : null;
}

function column(id, label, start, close) {
  const node = desk.nodes.get(id);
  const tokens = tokensAfter(id, start);
  const bits = meanBits(tokens);
  const numbers = make("p", {
    class: "hint readout",
    text: bits === null ? "Typed words" : `Surprise of the model’s words: ${bits.toFixed(1)} bits a token`,
  });
  const tell = token => {
    numbers.textContent = token.logprob === null ? "Typed" : readout(token);
  };
  return make(
    "article",
    {"aria-label": label},
    make("h3", {text: node.name ?? label, dir: "auto"}),
    tokens.length
      ? tokenLine(tokens, tell, `Words of ${label}`)
      : make("p", {class: "tokens", text: "(It ends here.)"}),
    numbers,
    make("button", {
      type: "button",
      text: "Show this one",
      click: () => {
        close(null);
        showNode(id);
      },
    }),
  );
}

/**
 * Show two branches side by side.
 * @param {any} first @param {any} second ids of their last nodes
 * @returns {Promise<void>}
 */
export async function compareBranches(first, second) {
  await Promise.all([desk.loadTokens(first), desk.loadTokens(second)]);
  const [a, b] = [shownText(desk.nodes, first), shownText(desk.nodes, second)];
  let start = commonPrefix(a, b);
  while (start > 0 && /\S/.test(a[start - 1]) && (/\S/.test(a[start] ?? " ") || /\S/.test(b[start] ?? " "))) start -= 1;
  const shared = a.slice(Math.max(0, start - SHARED), start);
  await openDialog(
    "Two branches",
    close => [
      make("p", {
        class: "tokens shared",
        dir: "auto",
        text: `${start > SHARED ? "… " : ""}${shared}` || "They differ from the first word on.",
      }),
      legend(),
      make(
        "div",
        {class: "cards two"},
        column(first, "On the paper", start, close),
        column(second, "The other", start, close),
      ),
      make("div", {class: "buttons"}, make("button", {type: "button", text: "Close", click: () => close(null)})),
    ],
    "wide",
  );
}
