// Keeping what was typed: at the server after a short pause and before the page is left, and in this browser until the
// server has it.

import {browserStore, tabStore} from "./browser_store.js";
import {desk} from "./desk.js";
import {afterPause, byId} from "./dom.js";
import {closeNotice, notify, say, tellError} from "./notices.js";
import {ask} from "./server.js";
import {shownText} from "./tree.js";

const PAUSE = 600;
const [FIRST_RETRY, LAST_RETRY] = [1500, 15000];
/** What a request may send while its page is closed, in bytes; browsers allow 64 KiB. */
const KEEPALIVE_BYTES = 60000;
/** After this time without a change, another tab's draft is left over rather than on its way. */
const LEFT_OVER = 10000;

const TAB = tabStore.get("gpt2tg.tab") ?? crypto.getRandomValues(new Uint32Array(2)).join("-");
tabStore.set("gpt2tg.tab", TAB);
const others = new BroadcastChannel("gpt2tg");

let running = null;
let isAway = false;
let delay = FIRST_RETRY;
let timer = 0;

const draftKey = (text, tab = TAB) => `gpt2tg.draft.${text}.${tab}`;

/** Keep what was typed in this browser, and send it after a pause. */
export function noteTyping() {
  const draft = {
    node: desk.current,
    version: desk.nodes.get(desk.current)?.version,
    value: desk.value,
    time: Date.now(),
  };
  browserStore.set(draftKey(desk.text.id), JSON.stringify(draft));
  showState();
  soon();
}

const soon = afterPause(() => flush().catch(() => {}), PAUSE);

const editBody = () => ({
  node: desk.current,
  version: desk.nodes.get(desk.current).version,
  text: desk.value,
});

/**
 * Send what is not saved, and wait until it is.
 * @throws {import("./server.js").ServerError} if the server does not take it; it is tried again later
 */
export async function flush() {
  running ??= save().finally(() => (running = null));
  await running;
  if (!desk.isSaved) await flush();
}

async function save() {
  clearTimeout(timer);
  const text = desk.text;
  while (text && desk.text === text && !desk.isSaved) {
    showState();
    const [sent, base] = [desk.value, desk.current];
    let answer;
    try {
      if (desk.isStale) await refresh();
      answer = await ask(`${desk.path}/edit`, {method: "POST", body: editBody()});
    } catch (error) {
      goAway(error);
      throw error;
    }
    comeBack();
    if (desk.text !== text) return;
    desk.merge(answer.nodes, answer.changed);
    if (desk.current === base) desk.current = answer.current;
    if (desk.value === sent) forgetDraft();
    if (answer.is_branched) await tellBranched();
    desk.tell("nodes");
    tellOtherTabs();
  }
  showState();
}

/** Take over the nodes as the server has them. What is on the paper stays. */
async function refresh() {
  const opened = desk.text;
  const text = await ask(desk.path);
  if (desk.text !== opened) return;
  desk.merge(text.nodes, text.changed);
  desk.isStale = false;
}

/** Say that somebody else changed the same words, and take over the branch that they made. */
async function tellBranched() {
  notify("This text was changed elsewhere, too. Your words are a branch of their own.");
  await refresh();
}

function goAway(error) {
  if (error.status !== 0 && error.status < 500) {
    tellError(error);
    return;
  }
  if (!isAway) {
    notify(
      "The server does not answer. What you write is kept in this browser and sent when the server is back.",
      null,
      true,
    );
  }
  isAway = true;
  showState();
  timer = setTimeout(() => flush().catch(() => {}), delay);
  delay = Math.min(LAST_RETRY, 2 * delay);
}

function comeBack() {
  delay = FIRST_RETRY;
  if (!isAway) return;
  isAway = false;
  closeNotice();
  notify("The server is back, and your words are saved.");
}

function forgetDraft() {
  browserStore.remove(draftKey(desk.text.id));
}

/** Show whether everything is saved. */
export function showState() {
  const words = isAway ? "Kept in this browser" : desk.isSaved ? "Saved" : "Saving …";
  if (byId("saved").textContent !== words) byId("saved").textContent = words;
  byId("saved").classList.toggle("away", isAway);
}

/** Put words that a closed or crashed page left in this browser back on the paper. */
export function bringBackDraft() {
  const prefix = draftKey(desk.text.id, "");
  for (const key of browserStore.names().filter(name => name.startsWith(prefix))) {
    const draft = parsed(browserStore.get(key));
    const isOurs = key === draftKey(desk.text.id);
    if (draft && !isOurs && Date.now() - draft.time < LEFT_OVER) continue;
    browserStore.remove(key);
    const isKnown = !draft || [...desk.nodes.keys()].some(id => shownText(desk.nodes, id) === draft.value);
    if (isKnown) continue;
    if (desk.nodes.has(draft.node)) desk.current = draft.node;
    desk.value = draft.value;
    noteTyping();
    notify("Words that were not saved yet are back.");
    return;
  }
}

function parsed(json) {
  try {
    const draft = JSON.parse(json);
    return typeof draft?.value === "string" ? draft : null;
  } catch {
    return null;
  }
}

/** Tell other tabs of this browser that the text changed. */
export function tellOtherTabs() {
  others.postMessage({text: desk.text.id, tab: TAB});
}

/**
 * Send what is not saved before the page is left, and notice when another tab changes the text.
 * @param {() => void} reload shows the text as the server has it
 */
export function setUpSaving(reload) {
  const leave = () => {
    if (!desk.text || desk.isSaved) return;
    const body = editBody();
    if (new Blob([body.text]).size > KEEPALIVE_BYTES) return;
    ask(`${desk.path}/edit`, {method: "POST", body, keepalive: true}).catch(() => {});
  };
  window.addEventListener("pagehide", leave);
  window.addEventListener("online", () => flush().catch(() => {}));
  others.addEventListener("message", ({data}) => {
    if (!desk.text || data.text !== desk.text.id || data.tab === TAB) return;
    notify(
      "This text was changed in another tab. What you write here becomes a branch of its own.",
      {label: "Show the newest words", run: reload},
      true,
    );
    say("This text was changed in another tab.");
  });
  document.addEventListener("visibilitychange", async () => {
    if (document.visibilityState !== "visible" || !desk.text || desk.writing || !desk.isSaved) return;
    const text = desk.text;
    try {
      const texts = await ask("/api/texts");
      const newest = texts.find(other => other.id === text.id);
      if (desk.text === text && desk.isSaved && newest && newest.changed !== text.changed) reload();
    } catch {
      /* it is noticed at the next change */
    }
  });
}
