// The buttons under the paper, and the keys that do the same.

import {closeAlternatives} from "./alternatives.js";
import {browserStore} from "./browser_store.js";
import {desk} from "./desk.js";
import {openDialog} from "./dialogs.js";
import {byId, make} from "./dom.js";
import {canRedo, canUndo, relabel} from "./history.js";
import {tellError} from "./notices.js";
import {closeCover} from "./panels.js";
import {paper} from "./paper.js";
import {asWords, countWords} from "./tree.js";
import {canRetry, continueText, redoStep, retry, stopWriting, typed, undoStep} from "./writing.js";

const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
const CTRL = isMac ? "⌘" : "Ctrl";

const SHORTCUTS = [
  [`${CTRL} + Enter`, "Continue"],
  ["Esc", "Stop, or close what is open"],
  [`${CTRL} + Shift + Enter`, "Retry: the model’s last words again, otherwise"],
  [`${CTRL} + Z`, "Undo, whether you or the model wrote it"],
  [`${CTRL} + Shift + Z`, "Redo"],
  ["Alt + ↓", "Other words in the place of the one at the caret"],
  ["1 to 8", "Take a candidate"],
  ["↑ ↓ and Enter", "Move among the branches and show one"],
  ["← →", "Move from word to word where a text is read or compared"],
];

const count = () => Number(byId("count").value);

function toggleWriting() {
  if (desk.writing) stopWriting();
  else continueText({count: count()});
}

/** Show which buttons can be pressed, and how long the text is. */
function draw() {
  const isWriting = Boolean(desk.writing);
  byId("continue").textContent = isWriting ? "Stop" : "Continue";
  byId("continue").classList.toggle("stop", isWriting);
  byId("continue").title = isWriting ? "Esc" : `${CTRL} + Enter`;
  byId("retry").disabled = !canRetry();
  byId("undo").disabled = !canUndo();
  byId("redo").disabled = !canRedo();
  byId("words").textContent = asWords(countWords(desk.value));
}

/** Show the list of keys. */
function showHelp() {
  openDialog(
    "How it works",
    close => [
      make("p", {
        text:
          "Write a beginning and press Continue: the model goes on from the last word. Edit anything, anywhere. " +
          "Nothing is ever overwritten: a retry, another word or a change further up is a branch, and all are kept.",
      }),
      make("p", {
        text:
          "To see probabilities, choose them under Show: each word of the model is shaded by how unexpected it was. " +
          "Click one for the words that it could have written instead.",
      }),
      make("h3", {text: "Keys"}),
      make(
        "dl",
        {class: "keys"},
        ...SHORTCUTS.flatMap(([keys, action]) => [
          make("dt", {}, make("kbd", {text: keys})),
          make("dd", {text: action}),
        ]),
      ),
      make(
        "div",
        {class: "buttons"},
        make("button", {type: "button", class: "primary", text: "Close", click: () => close(null)}),
      ),
    ],
    "wide",
  );
}

function pressed(event) {
  if (document.querySelector("dialog[open]") || byId("write").hidden) return;
  const hasCtrl = isMac ? event.metaKey : event.ctrlKey;
  const key = event.key.toLowerCase();
  let action = null;
  if (hasCtrl && key === "enter")
    action = event.shiftKey ? () => retry(count()) : () => desk.writing || continueText({count: count()});
  else if (key === "escape" && !event.isComposing) action = escape;
  else if (event.target === paper && hasCtrl && !event.altKey && key === "z")
    action = event.shiftKey ? redoStep : undoStep;
  else if (event.target === paper && hasCtrl && !event.altKey && key === "y") action = redoStep;
  if (!action) return;
  event.preventDefault();
  action();
}

function escape() {
  if (desk.writing) stopWriting();
  else if (!byId("alternatives").hidden) closeAlternatives();
  else closeCover();
}

/** Make the buttons, the keys and typing work. */
export function setUpActions() {
  byId("continue").addEventListener("click", toggleWriting);
  byId("retry").addEventListener("click", () => retry(count()).catch(tellError));
  byId("undo").addEventListener("click", undoStep);
  byId("redo").addEventListener("click", redoStep);
  byId("show-help").addEventListener("click", showHelp);
  byId("count").value = browserStore.get("gpt2tg.count") ?? "1";
  if (!byId("count").value) byId("count").value = "1";
  byId("count").addEventListener("change", () => browserStore.set("gpt2tg.count", byId("count").value));
  document.addEventListener("keydown", pressed);
  paper.addEventListener("beforeinput", event => {
    const step = {historyUndo: undoStep, historyRedo: redoStep}[event.inputType];
    if (!step) return;
    event.preventDefault();
    step();
  });
  paper.addEventListener("input", event => typed(event.inputType));
  desk.on("nodes", relabel);
  desk.on("text nodes paper writing growing", draw);
}
