// The paper: a <textarea>, so that caret, undo keys, input methods and screen readers work as everywhere, over a copy
// of its text whose pieces can be shaded. Both are set in the same type, so their lines break at the same places.

import {browserStore} from "./browser_store.js";
import {desk} from "./desk.js";
import {byId, make, onceAFrame} from "./dom.js";
import {readout, shaded, shadeOf} from "./shading.js";
import {piecesOf} from "./tree.js";

const area = byId("paper");
const copy = byId("copy");

/** The pieces of the copy, each with the element that shows it. */
let pieces = [];
let spans = [];

/** @returns {HTMLTextAreaElement} */
export const paper = area;

/** Which view the person chose: "plain", "who" or "odds". */
export const viewOf = () => byId("view").value;

/**
 * Show the words of the desk.
 * @param {number|null} caret where the caret goes; null: it stays, at the end if it was there
 */
export function showPaper(caret = null) {
  if (area.value !== desk.value) {
    const {selectionStart, selectionEnd} = area;
    const wasAtEnd = selectionStart === area.value.length;
    area.value = desk.value;
    if (wasAtEnd) area.setSelectionRange(desk.value.length, desk.value.length);
    else area.setSelectionRange(selectionStart, selectionEnd);
  }
  if (caret !== null) area.setSelectionRange(caret, caret);
  drawCopy();
}

function drawCopy() {
  const next = piecesOf(desk.nodes, desk.current, desk.value);
  let same = 0;
  while (same < next.length && same < pieces.length && isSame(next[same], pieces[same])) same += 1;
  for (const span of spans.splice(same)) span.remove();
  const added = next.slice(same).map(piece => {
    const shade = piece.token && piece.token.logprob !== null ? shadeOf(piece.token.logprob) : "";
    return make("span", {class: piece.kind}, ...shaded(piece.text, shade));
  });
  copy.lastElementChild.before(...added);
  spans.push(...added);
  pieces = next;
}

const isSame = (a, b) =>
  a.text === b.text &&
  a.node === b.node &&
  a.index === b.index &&
  a.kind === b.kind &&
  a.token?.logprob === b.token?.logprob;

/**
 * Return the piece at an offset of the text, if the probabilities of its token are known. Between two tokens it is the
 * one before.
 * @param {number} offset in UTF-16 units
 */
export function tokenAt(offset) {
  const number = pieces.findIndex(piece => piece.start < offset && offset <= piece.start + piece.text.length);
  const piece = pieces[number === -1 && offset === 0 ? 0 : number];
  return piece?.token ? piece : null;
}

/** Return whether the text before a piece ends within a word. */
export const goesOnWord = piece => /[\p{L}\p{N}]$/u.test(desk.value.slice(0, piece.start));

/** Return where a piece stands in the window. @returns {DOMRect} */
export function placeOf(piece) {
  const span = spans[pieces.findIndex(other => other.start === piece.start)];
  return span.getClientRects()[0] ?? span.getBoundingClientRect();
}

/** Mark the piece whose alternatives are shown. */
export function markPiece(piece) {
  spans.forEach((span, number) =>
    span.classList.toggle("open", piece !== null && pieces[number].start === piece.start),
  );
}

/** Return the piece under the pointer. */
function pieceUnder(event) {
  const span = document
    .elementsFromPoint(event.clientX, event.clientY)
    .map(found => found.closest("#copy > span"))
    .find(Boolean);
  const piece = pieces[spans.indexOf(span)];
  return piece?.token ? piece : null;
}

/** Make the copy follow the text, and the readout follow the pointer and the caret. */
export function setUpPaper() {
  desk.on("text nodes paper growing", () => showPaper());
  const tell = piece => {
    const isShown = piece && piece.token.logprob !== null && viewOf() === "odds";
    byId("readout").textContent = isShown ? readout(piece.token) : "";
  };
  let pointer = null;
  const follow = onceAFrame(() => tell(pieceUnder(pointer)));
  area.addEventListener("pointermove", event => {
    if (viewOf() !== "odds") return;
    pointer = event;
    follow();
  });
  document.addEventListener("selectionchange", () => {
    if (document.activeElement === area && viewOf() === "odds") tell(tokenAt(area.selectionStart));
  });
  const forget = () => tell(null);
  area.addEventListener("pointerleave", forget);
  area.addEventListener("blur", forget);
  desk.on("nodes writing", forget);
  const setView = () => {
    copy.className = `copy ${viewOf()}`;
    browserStore.set("gpt2tg.view", viewOf());
    forget();
    byId("legend-odds").hidden = viewOf() !== "odds";
    byId("legend-who").hidden = viewOf() !== "who";
  };
  const view = browserStore.get("gpt2tg.view");
  if (["plain", "who", "odds"].includes(view)) byId("view").value = view;
  byId("view").addEventListener("change", setView);
  setView();
}

/** Bring the end of the text into sight while it grows, if the person has not scrolled away. */
export function followEnd() {
  const bar = byId("actions").getBoundingClientRect();
  const over = area.getBoundingClientRect().bottom - bar.top + 24;
  if (over > 0 && over < window.innerHeight * 0.6) window.scrollBy(0, over);
}
