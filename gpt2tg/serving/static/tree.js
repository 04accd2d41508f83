// A text is a tree of nodes that are never overwritten. Pure functions on `nodes`, a Map from id to node.
//
// A node hangs at (parent, at): it goes on after the first `at` characters of its parent. Characters are code points, as
// Python counts them; a JavaScript string counts in UTF-16, where some characters take two units.

/**
 * @typedef {{text: string, logprob: number, rank: number, entropy: number|null,
 *   alternatives: {id: number, text: string, probability: number}[]}} Token
 * @typedef {{id: any, parent: any, at: number, kind: "typed"|"generated"|"chosen", text: string, name: string|null,
 *   created: any, settings: Object|null, finish_reason: string|null, tokens: Token[]|null, pruned: boolean,
 *   version: number}} TextNode
 * @typedef {Map<any, TextNode>} Nodes
 */

const SURROGATES = /[\ud800-\udfff]/;

/** Return the first `count` characters of a text. */
export const cut = (text, count) => (SURROGATES.test(text) ? [...text].slice(0, count).join("") : text.slice(0, count));

/**
 * Return the nodes from the root to `id`, each with the part of its text that is shown.
 * @param {Nodes} nodes
 * @returns {{node: TextNode, text: string}[]}
 */
export function pathTo(nodes, id) {
  const path = [];
  let end = null;
  for (let node = nodes.get(id); node; node = nodes.get(node.parent)) {
    path.push({node, text: end === null ? node.text : cut(node.text, end)});
    end = node.at;
  }
  return path.reverse();
}

/** Return the text that a node shows. @param {Nodes} nodes @returns {string} */
export const shownText = (nodes, id) =>
  pathTo(nodes, id)
    .map(part => part.text)
    .join("");

/** Return how many UTF-16 units two texts have in common at their beginning; never half a character. */
export function commonPrefix(a, b) {
  const most = Math.min(a.length, b.length);
  let length = 0;
  while (length < most && a[length] === b[length]) length += 1;
  return length > 0 && /[\ud800-\udbff]/.test(a[length - 1]) ? length - 1 : length;
}

/**
 * Return the text on the paper in pieces: one for each token whose probability is known, else one for each node. A token
 * of which only the beginning is left has none. What differs from the node's text was typed just now, and all after it.
 * @param {Nodes} nodes
 * @param {any} current the node that the paper began with
 * @param {string} value what stands on the paper
 * @returns {{text: string, start: number, kind: string, node: any, index: number|null, token: Token|null}[]}
 */
export function piecesOf(nodes, current, value) {
  const kept = commonPrefix(shownText(nodes, current), value);
  const pieces = [];
  let start = 0;
  const add = (text, node, index, token) => {
    const room = kept - start;
    const part = text.slice(0, Math.max(0, room));
    const whole = part.length === text.length;
    if (part)
      pieces.push({
        text: part,
        start,
        kind: node.kind,
        node: node.id,
        index: whole ? index : null,
        token: whole ? token : null,
      });
    start += text.length;
  };
  for (const {node, text} of pathTo(nodes, current)) {
    const end = start + text.length;
    for (const [index, token] of (node.tokens ?? []).entries()) {
      if (start >= end) break;
      const isWhole = token.text.length <= end - start;
      if (token.text) add(token.text.slice(0, end - start), node, isWhole ? index : null, isWhole ? token : null);
    }
    if (start < end) add(text.slice(text.length - (end - start)), node, null, null);
  }
  if (kept < value.length) {
    pieces.push({text: value.slice(kept), start: kept, kind: "typed", node: null, index: null, token: null});
  }
  return pieces;
}

/** Return the children of each node, oldest first. @param {Nodes} nodes @returns {Map<any, TextNode[]>} */
function childrenOf(nodes) {
  const children = new Map();
  for (const node of nodes.values()) {
    if (!children.has(node.parent)) children.set(node.parent, []);
    children.get(node.parent).push(node);
  }
  return children;
}

/**
 * Return the tree as rows of an outline. The branch on the paper is a straight line; other branches are indented
 * beside the node that they leave.
 * @param {Nodes} nodes
 * @param {any} current
 * @param {boolean} withPruned whether pruned branches are rows too
 * @returns {{node: TextNode, level: number, isOnPaper: boolean}[]}
 */
export function outline(nodes, current, withPruned) {
  const all = childrenOf(nodes);
  const onPaper = new Set(pathTo(nodes, current).map(part => part.node.id));
  const rows = [];
  const walk = (first, level) => {
    for (let node = first; node;) {
      rows.push({node, level, isOnPaper: onPaper.has(node.id)});
      const children = (all.get(node.id) ?? []).filter(child => withPruned || !child.pruned);
      const straight = children.find(child => onPaper.has(child.id)) ?? children.at(-1);
      for (const child of children) if (child !== straight) walk(child, level + 1);
      node = straight;
    }
  };
  for (const root of all.get(null) ?? []) walk(root, 1);
  return rows;
}

/** Return the last node of a branch: from `id` on, always the newest that is not pruned. @param {Nodes} nodes */
export function endOfBranch(nodes, id) {
  const children = childrenOf(nodes);
  for (;;) {
    const next = (children.get(id) ?? []).filter(node => !node.pruned).at(-1);
    if (!next) return id;
    id = next.id;
  }
}

/** Return the beginning of a text, for a list. @param {string} text @param {number} most in UTF-16 units */
export function firstWords(text, most = 60) {
  const line = text
    .slice(0, 4 * most)
    .replace(/\s+/g, " ")
    .trim();
  if (line.length <= most) return line;
  const end = line.lastIndexOf(" ", most);
  return `${line.slice(0, end > most / 2 ? end : most)} …`;
}

/** @param {string} text @returns {number} */
export const countWords = text => text.match(/\S+/g)?.length ?? 0;

/** Return a number of words as people say it. @param {number} count */
export const asWords = count => `${count.toLocaleString("en")} ${count === 1 ? "word" : "words"}`;
