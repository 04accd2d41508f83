// The list of texts: new, open, rename, delete, import.

import {browserStore} from "./browser_store.js";
import {desk} from "./desk.js";
import {confirmThat} from "./dialogs.js";
import {afterPause, byId, make} from "./dom.js";
import {importFile} from "./files.js";
import {startHistory} from "./history.js";
import {notify, tellError} from "./notices.js";
import {paper, showPaper} from "./paper.js";
import {bringBackDraft, flush, showState} from "./saving.js";
import {ask} from "./server.js";
import {asWords, firstWords, shownText} from "./tree.js";
import {stopWriting} from "./writing.js";

const LAST = "gpt2tg.text";

const list = byId("text-list");

/** Return a date as people say it. */
function ago(changed) {
  const date = new Date(typeof changed === "number" ? changed * 1000 : changed);
  if (Number.isNaN(date.getTime())) return "";
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday
    ? date.toLocaleTimeString([], {hour: "2-digit", minute: "2-digit"})
    : date.toLocaleDateString([], {day: "numeric", month: "short", year: "numeric"});
}

const nameOf = text => text.title || firstWords(text.opening ?? "", 40) || "Untitled";

function row(text) {
  const isOpen = text.id === desk.text?.id;
  return make(
    "li",
    {},
    make(
      "button",
      {type: "button", class: "open", "aria-current": isOpen ? "true" : null, click: () => pick(text.id)},
      make("span", {class: "words", text: nameOf(text), dir: "auto"}),
      make("span", {class: "hint", text: `${asWords(text.words)}, ${ago(text.changed)}`}),
    ),
    make("button", {
      type: "button",
      class: "close",
      "aria-label": `Delete ${nameOf(text)}`,
      title: "Delete",
      text: "×",
      click: () => remove(text).catch(tellError),
    }),
  );
}

/** Ask the server for the list and draw it. */
async function refreshTexts() {
  const texts = await ask("/api/texts");
  list.replaceChildren(...texts.map(row));
  return texts;
}

async function pick(id) {
  try {
    await openText(id);
    byId("texts").dispatchEvent(new Event("picked"));
  } catch (error) {
    tellError(error);
  }
}

/** Put away the open text. What was typed is kept even if the server does not answer. */
async function putAway() {
  if (!desk.text) return;
  await stopWriting();
  await flush().catch(() => {});
}

function take(text) {
  desk.open(text);
  browserStore.set(LAST, text.id);
  byId("title").value = text.title;
  document.title = `${nameOf(text)} · gpt2tg`;
  startHistory();
  bringBackDraft();
  desk.tell("text", "settings");
  showPaper(desk.value.length);
  showState();
}

/** Open a text. @param {any} id */
async function openText(id) {
  const [text] = await Promise.all([ask(`/api/texts/${encodeURIComponent(id)}`), putAway()]);
  take(text);
  await refreshTexts();
}

/** Show the open text as the server has it. If the words are the same, undo still knows the steps to them. */
export async function reloadText() {
  await flush();
  const text = await ask(desk.path);
  const nodes = new Map(text.nodes.map(node => [node.id, node]));
  if (text.current !== desk.current || shownText(nodes, text.current) !== desk.value) {
    take(text);
    return;
  }
  desk.merge(text.nodes, text.changed);
  desk.tell("nodes");
}

/** Begin a new text, with the settings of the one that was open. */
async function newText() {
  await putAway();
  const settings = desk.settings;
  let text = await ask("/api/texts", {method: "POST", body: {}});
  if (Object.keys(settings).length)
    text = await ask(`/api/texts/${encodeURIComponent(text.id)}`, {method: "PATCH", body: {settings}});
  take(text);
  await refreshTexts();
  paper.focus();
}

/** Open the text that was open last, else the newest, else a new one. */
export async function openLastText() {
  const texts = await refreshTexts();
  const last = texts.find(text => String(text.id) === browserStore.get(LAST)) ?? texts[0];
  if (last) await openText(last.id);
  else await newText();
}

async function remove(text) {
  const sure = await confirmThat({
    title: "Delete this text?",
    text: `“${nameOf(text)}” with all its branches. You can take it back right afterwards.`,
    confirm: "Delete",
  });
  if (!sure) return;
  if (text.id === desk.text?.id) await putAway();
  await ask(`/api/texts/${encodeURIComponent(text.id)}`, {method: "DELETE"});
  if (text.id === desk.text?.id) {
    desk.text = null;
    await openLastText();
  } else await refreshTexts();
  const restore = async () => {
    await ask(`/api/texts/${encodeURIComponent(text.id)}/restore`, {method: "POST", body: {}});
    await openText(text.id);
  };
  notify(`“${nameOf(text)}” is deleted.`, {label: "Take it back", run: () => restore().catch(tellError)});
}

async function rename() {
  const title = byId("title").value.trim();
  if (title === desk.text.title) return;
  const text = desk.text;
  const answer = await ask(desk.path, {method: "PATCH", body: {title}});
  text.title = answer.title;
  text.changed = answer.changed;
  document.title = `${nameOf(text)} · gpt2tg`;
  await refreshTexts();
}

/** Make texts of files and open the last one. @param {Iterable<File>} files */
async function importFiles(files) {
  for (const file of files) {
    await putAway();
    const text = await importFile(file);
    take(text);
    await refreshTexts();
    notify([`${file.name} is open.`, ...(text.warnings ?? [])].join(" "));
  }
}

function acceptDrops() {
  const hasFiles = event => event.dataTransfer?.types.includes("Files");
  const mark = isOver => document.body.classList.toggle("dropping", isOver);
  window.addEventListener("dragover", event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  window.addEventListener("dragleave", event => event.relatedTarget ?? mark(false));
  window.addEventListener("drop", event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(false);
    importFiles([...event.dataTransfer.files]).catch(tellError);
  });
}

/** Keep the list up to date while it is shown. */
const refreshSoon = afterPause(() => {
  if (!byId("texts").hidden && desk.text) refreshTexts().catch(() => {});
}, 1000);

/** Make the list, the title and the import work. */
export function setUpTexts() {
  byId("new-text").addEventListener("click", () =>
    newText()
      .then(() => byId("texts").dispatchEvent(new Event("picked")))
      .catch(tellError),
  );
  const save = () => rename().catch(tellError);
  byId("title").addEventListener("input", afterPause(save, 800));
  byId("title").addEventListener("change", save);
  byId("title").addEventListener("keydown", event => {
    if (event.key === "Enter") paper.focus();
  });
  byId("import").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async () => {
    await importFiles([...byId("file").files]).catch(tellError);
    byId("file").value = "";
  });
  desk.on("nodes", refreshSoon);
  acceptDrops();
}
