// Continue, stop, retry, undo, redo, and going to another branch: whatever changes which words are on the paper.

import {desk} from "./desk.js";
import {onceAFrame} from "./dom.js";
import {notify, say, tellError} from "./notices.js";
import {followEnd, paper, showPaper} from "./paper.js";
import * as history from "./history.js";
import {flush, noteTyping, showState, tellOtherTabs} from "./saving.js";
import {ask, stream} from "./server.js";
import {asSentence, usedSettings} from "./setting_values.js";
import {asWords, countWords, shownText} from "./tree.js";

/** How many alternatives of each token are kept with it. */
const ALTERNATIVES = 10;
/** After a stop, how often and how long apart the server is asked for what it kept. */
const [SETTLE_TRIES, SETTLE_PAUSE] = [8, 150];

let chain = Promise.resolve();

/** Run an action after those that were asked for before. @param {() => Promise<void>} action */
function inTurn(action) {
  chain = chain.then(action).catch(tellError);
  return chain;
}

const flushed = () =>
  flush().catch(error => {
    if (!error.isAway) throw error;
  });

/**
 * Let the model go on after the words on the paper.
 * @param {{count?: number, changes?: Object}} options `changes` to the settings, for this time
 */
export function continueText({count = 1, changes = {}} = {}) {
  if (desk.writing || !desk.text) return chain;
  const job = {controller: new AbortController(), ids: [], count, isAbandoned: false};
  desk.writing = job;
  desk.candidates = [];
  leaveOutLastSpaces();
  desk.tell("writing");
  return inTurn(async () => {
    try {
      await flush();
      await receive(job, {
        node: desk.current,
        settings: {...usedSettings(), ...changes},
        count,
        alternatives: ALTERNATIVES,
      });
      tellEnd(job);
    } catch (error) {
      tellError(error);
      await settle(job);
    } finally {
      desk.writing = null;
      history.record("generated");
      desk.tell("nodes", "writing");
      showState();
      if (job.ids.length) tellOtherTabs();
    }
  });
}

/** Leave out spaces that were typed last, because the model's next word begins with its own. */
function leaveOutLastSpaces() {
  const isContinued = [...desk.nodes.values()].some(node => node.parent === desk.current);
  const isTyped = !desk.isSaved || (desk.nodes.get(desk.current)?.kind === "typed" && !isContinued);
  if (isTyped) desk.value = desk.value.replace(/(\S) +$/, "$1");
}

async function receive(job, request) {
  const {signal} = job.controller;
  signal.throwIfAborted();
  for await (const event of stream(`${desk.path}/continue`, request, signal)) {
    if (event.type === "begin") begin(job, event);
    else if (event.type === "piece") grow(job, event);
    else if (event.type === "end") end(job, event.nodes, event.changed);
    else if (event.type === "error") throw new Error(event.error.message);
  }
  signal.throwIfAborted();
}

function begin(job, event) {
  job.ids = event.nodes;
  job.count = event.nodes.length; // a strategy may give fewer
  desk.merge(event.node_list.map(node => ({...node, tokens: []})));
  if (job.count > 1) desk.candidates = event.nodes;
  else if (!job.isAbandoned) desk.show(event.nodes[0]);
  desk.tell("nodes");
  say(job.count > 1 ? `The model writes ${job.count} candidates.` : "The model writes.");
  if (event.warnings?.length) notify(event.warnings.map(asSentence).join(" "));
}

function grow(job, event) {
  const node = desk.nodes.get(job.ids[event.index]);
  node.text += event.text;
  node.tokens.push(...(event.tokens ?? []));
  showGrowth();
}

/** Show what arrived. A fast model sends more pieces than there are frames. */
const showGrowth = onceAFrame(() => {
  if (!desk.writing) return;
  const isOnPaper = desk.isGrowing;
  if (isOnPaper) desk.value = desk.shown;
  desk.tell("growing");
  if (isOnPaper) followEnd();
});

function end(job, nodes, changed) {
  desk.merge(nodes, changed);
  if (job.count === 1 && !job.isAbandoned) desk.value = desk.shown;
}

function tellEnd(job) {
  const nodes = job.ids.map(id => desk.nodes.get(id));
  if (job.count > 1) {
    say(`${job.count} candidates are ready to choose from.`);
    return;
  }
  const [node] = nodes;
  if (!node) return;
  say(`Written, ${asWords(countWords(node.text))}: ${node.text}`);
  const twin = [...desk.nodes.values()].find(
    other =>
      other !== node &&
      !other.pruned &&
      other.parent === node.parent &&
      other.kind === "generated" &&
      other.text === node.text,
  );
  if (!node.text) notify("The model ended the text here. Add a few words, or allow it to go on under Settings.");
  else if (twin)
    notify(
      "The model wrote the same words again: these settings leave nothing to chance. " +
        "Choose another strategy under Settings.",
    );
}

/** After a stop or an error, take over what the server kept. What it has lost is sent as if it had been typed. */
async function settle(job) {
  for (let tries = 0; job.ids.length && tries < SETTLE_TRIES; tries += 1) {
    const text = await ask(desk.path).catch(() => null);
    if (text === null) break;
    const nodes = text.nodes.filter(node => job.ids.includes(node.id));
    if (nodes.every(node => node.finish_reason !== null)) {
      end(job, nodes, text.changed);
      say("Stopped.");
      return;
    }
    await new Promise(resolve => setTimeout(resolve, SETTLE_PAUSE));
  }
  if (!job.ids.length) return;
  desk.isStale = true;
  noteTyping();
}

/** Stop the model. What it has written stays. @returns {Promise<void>} */
export function stopWriting() {
  desk.writing?.controller.abort();
  return chain;
}

/** Whether the words at the end are the model's, so that it can be asked for others. */
export const canRetry = () => desk.isSaved && desk.nodes.get(desk.current)?.kind === "generated" && !desk.writing;

/** Return a seed that was not used before. It is given even where the server was started with a seed of its own. */
export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Let the model write its last words again, as a branch of their own, with a new seed. @param {number} count */
export async function retry(count) {
  if (!canRetry()) return;
  const node = desk.nodes.get(desk.current);
  const before = desk.value.slice(0, desk.value.length - node.text.length);
  desk.show(node.parent);
  desk.value = before; // less than the parent shows, where the node leaves it before its end
  desk.tell("nodes");
  await continueText({count, changes: {seed: newSeed()}});
}

/** Note that the person typed. Typing stops the model. @param {string} kind what the browser calls the change */
export function typed(kind) {
  if (desk.writing) {
    desk.writing.isAbandoned = true;
    desk.writing.controller.abort();
  }
  desk.value = paper.value;
  if (desk.candidates.length && !desk.writing) desk.candidates = [];
  history.record(`typing ${kind}`, paper.selectionStart);
  noteTyping();
  desk.tell("paper");
}

/**
 * Put the text of a node on the paper.
 * @param {any} id
 */
export function showNode(id) {
  return inTurn(async () => {
    await flushed();
    desk.candidates = [];
    desk.show(id);
    history.record("branch");
    desk.tell("nodes");
    showState();
    await desk.keepCurrent();
    tellOtherTabs();
  });
}

/** Take back the last step. */
export const undoStep = () => step(history.undo);

/** Do the step again that was taken back. */
export const redoStep = () => step(history.redo);

function step(move) {
  stopWriting();
  return inTurn(async () => {
    await flushed();
    const to = move();
    if (!to) return;
    desk.candidates = [];
    const isNode = desk.nodes.has(to.node) && shownText(desk.nodes, to.node) === to.value;
    if (isNode) desk.show(to.node);
    else desk.value = to.value;
    showPaper(Math.min(to.caret, to.value.length));
    desk.tell("nodes");
    if (isNode) await desk.keepCurrent();
    else noteTyping();
  });
}

/**
 * Take an alternative token: a branch of its own, on which the model goes on.
 * @param {any} node @param {number} token its index in the node @param {number} alternative its index in the list
 */
export async function takeAlternative(node, token, alternative) {
  await stopWriting();
  await inTurn(async () => {
    await flush();
    const answer = await ask(`${desk.path}/choose`, {method: "POST", body: {node, token, alternative}});
    desk.merge(answer.nodes, answer.changed);
    desk.candidates = [];
    desk.show(answer.current);
    history.record("chosen");
    desk.tell("nodes");
  });
  await continueText();
}
