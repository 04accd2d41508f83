// Probabilities as colours and as words. A number always stands beside the colour, or one step away from it.

import {make} from "./dom.js";

/** How many shades there are; the stylesheet has as many. */
const SHADES = 8;

/** @param {number} logprob @returns {number} */
export const probabilityOf = logprob => Math.exp(logprob);

/** Return a probability as people write it. @param {number} p */
export function percent(p) {
  if (p >= 0.995) return `${(100 * p).toFixed(p === 1 ? 0 : 1)} %`;
  if (p >= 0.1) return `${(100 * p).toFixed(0)} %`;
  return p >= 0.0001 ? `${Number((100 * p).toPrecision(2))} %` : "< 0.01 %";
}

/** Return the class of a token: the less probable, the darker. @param {number} logprob */
export function shadeOf(logprob) {
  const bits = -logprob / Math.LN2;
  return `s${Math.min(SHADES, Math.round((bits / 14) * SHADES))}`;
}

/**
 * Return a token's text as nodes; the space before its word is not shaded.
 * @param {string} text @param {string} shade a class
 * @returns {(Node|string)[]}
 */
export function shaded(text, shade) {
  const space = /^\s*/.exec(text)[0];
  return [space, make("span", {class: shade, text: text.slice(space.length)})];
}

/**
 * Return the place of a token among all that could stand there.
 * @param {import("./tree.js").Token} token
 */
export function choiceOf({rank, alternatives}) {
  if (rank === null) return `none of the model’s first ${alternatives.length} choices`;
  const tens = rank % 100 >= 11 && rank % 100 <= 13;
  const ending = tens ? "th" : (["th", "st", "nd", "rd"][rank % 10] ?? "th");
  return `the model’s ${rank === 1 ? "first" : `${rank.toLocaleString("en")}${ending}`} choice`;
}

/**
 * Return a token so that its spaces and line breaks can be seen.
 * @param {string} text
 * @param {boolean} goesOn whether the text before it ends within a word
 */
export function visible(text, goesOn = false) {
  if (text === "" || text.includes("\ufffd")) return "(part of a character)";
  if (/^\s+$/.test(text)) return text.replace(/\n/g, "↵").replace(/[^\S\n]/g, "␣");
  const word = text.replace(/\n/g, "↵").replace(/^ /, "");
  return goesOn && !/^\s/.test(text) && /^[\p{L}\p{N}]/u.test(text) ? `…${word}` : word;
}

/** Return the readout of a token: a sentence of numbers. @param {import("./tree.js").Token} token */
export function readout(token) {
  if (token.logprob === null) return `“${visible(token.text)}”: no probability`;
  return `“${visible(token.text)}”: ${percent(probabilityOf(token.logprob))}, ${choiceOf(token)}`;
}

/**
 * Return a paragraph that shades each token; pointing at one or moving to it with the arrow keys tells its numbers.
 * @param {import("./tree.js").Token[]} tokens
 * @param {(token: import("./tree.js").Token|null, index: number) => void} tell called with the token pointed at
 * @param {string} label
 * @returns {HTMLElement}
 */
export function tokenLine(tokens, tell, label) {
  const line = make("p", {class: "tokens shaded", dir: "auto", role: "group", "aria-label": label});
  tokens.forEach((token, index) => {
    const shade = token.logprob === null ? "" : shadeOf(token.logprob);
    line.append(
      make(
        "span",
        {"data-index": index, tabindex: index === 0 ? 0 : -1},
        ...shaded(index === 0 ? token.text.replace(/^ /, "") : token.text, shade),
      ),
    );
  });
  const indexOf = target => {
    const span = target.closest("[data-index]");
    return span ? Number(span.dataset.index) : null;
  };
  const at = event => {
    const index = indexOf(event.target);
    if (index !== null) tell(tokens[index], index);
  };
  line.addEventListener("pointerover", at);
  line.addEventListener("focusin", at);
  line.addEventListener("click", at);
  line.addEventListener("keydown", event => {
    const index = indexOf(event.target);
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (index === null || !step) return;
    const next = line.children[index + (getComputedStyle(line).direction === "rtl" ? -step : step)];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return line;
}

/** Return the legend of the shades. */
export function legend() {
  return make("span", {class: "legend"}, "expected", make("i", {"aria-hidden": "true"}), "surprising");
}
