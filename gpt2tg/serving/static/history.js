// Undo and redo. A step is what stood on the paper, typed or generated, so one key takes back either. Nothing is lost in
// the tree: undo only goes back to what was there.

import {desk} from "./desk.js";

/** A pause in typing that makes a new step, in milliseconds. */
const PAUSE = 1200;

let steps = [];
let now = -1;
let last = {time: 0, kind: ""};

/** Begin with the text as it is. */
export function startHistory() {
  steps = [];
  now = -1;
  record("open");
}

/**
 * Note what stands on the paper.
 * @param {string} kind what was done; a word typed without a pause is one step
 * @param {number} caret where the caret stands
 */
export function record(kind, caret = desk.value.length) {
  const step = {node: desk.current, value: desk.value, caret};
  const time = performance.now();
  const goesOn =
    kind === last.kind &&
    kind.startsWith("typing") &&
    time - last.time < PAUSE &&
    now === steps.length - 1 &&
    !/\s/.test(step.value.charAt(caret - 1));
  if (steps[now]?.value === step.value) steps[now] = step;
  else {
    if (!goesOn) now += 1;
    steps.splice(now, steps.length, step);
  }
  last = {time, kind};
}

/** Note that what stands on the paper is now a node of its own. */
export function relabel() {
  if (!desk.writing && steps[now]?.value === desk.value) steps[now] = {...steps[now], node: desk.current};
}

export const canUndo = () => now > 0 || parentOfCurrent() !== null;
export const canRedo = () => now < steps.length - 1;

function parentOfCurrent() {
  const node = desk.nodes.get(desk.current);
  return node && desk.nodes.has(node.parent) ? node.parent : null;
}

/**
 * Return the step before this one: what the paper showed, or after a reload the node before this one.
 * @returns {{node: any, value: string, caret: number}|null}
 */
export function undo() {
  if (now > 0) {
    now -= 1;
    return steps[now];
  }
  const parent = parentOfCurrent();
  if (parent === null) return null;
  const before = {node: desk.current, value: desk.value};
  desk.show(parent);
  const step = {node: parent, value: desk.value, caret: desk.value.length};
  desk.current = before.node;
  desk.value = before.value;
  steps.unshift(step);
  now = 0;
  return step;
}

/** Return the step after this one. @returns {{node: any, value: string, caret: number}|null} */
export function redo() {
  if (!canRedo()) return null;
  now += 1;
  return steps[now];
}
