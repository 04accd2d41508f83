// What the page knows: the server's state, the text, and what stands on the paper. Parts of the page listen for:
//
//   "text"     another text is open, or its title changed
//   "nodes"    the tree or the branch on the paper changed
//   "paper"    the words on the paper changed
//   "growing"  generated words arrived
//   "writing"  the model begins or ends to write
//   "settings" the settings of the text changed

import {ask} from "./server.js";
import {pathTo, shownText} from "./tree.js";

class Desk extends EventTarget {
  /** The answer of /api/state. */
  server = null;
  /** The open text, without its nodes. */
  text = null;
  /** @type {import("./tree.js").Nodes} */
  nodes = new Map();
  /** The id of the node that the paper began with. */
  current = null;
  /** The words on the paper. They differ from the node's until they are saved. */
  value = "";
  /** Whether the server may have other nodes than the page, because a connection broke off. */
  isStale = false;
  /** While the model writes: {controller, ids: node ids, count, isAbandoned: whether its words no longer show}. */
  writing = null;
  /** The ids of candidates from which the person has not chosen yet. */
  candidates = [];

  /** Tell whoever listens. @param {...string} names */
  tell(...names) {
    for (const name of names) this.dispatchEvent(new Event(name));
  }

  /** @param {string} names separated by spaces @param {() => void} action */
  on(names, action) {
    for (const name of names.split(" ")) this.addEventListener(name, action);
  }

  /** The path of the open text's requests. */
  get path() {
    return `/api/texts/${encodeURIComponent(this.text.id)}`;
  }

  /** The text of the current node. */
  get shown() {
    return shownText(this.nodes, this.current);
  }

  /** Whether the model's words grow on the paper. They appear there a frame after they have arrived. */
  get isGrowing() {
    const job = this.writing;
    return job !== null && job.ids.length > 0 && job.count === 1 && !job.isAbandoned;
  }

  /** Whether the words on the paper are those of the current node, also at the server. */
  get isSaved() {
    return !this.isStale && (this.value === this.shown || this.isGrowing);
  }

  /** The settings of the text: those that differ from the defaults. */
  get settings() {
    return this.text?.settings ?? {};
  }

  /** Take over a text that the server sent. */
  open(text) {
    const {nodes, ...rest} = text;
    this.text = rest;
    this.nodes = new Map(nodes.map(node => [node.id, node]));
    this.candidates = [];
    this.isStale = false;
    this.show(text.current);
  }

  /**
   * Take over nodes that are new or changed. Tokens that were left out stay.
   * @param {import("./tree.js").TextNode[]} nodes
   * @param {number} changed when the text was changed, as the server says
   */
  merge(nodes, changed = this.text.changed) {
    this.text.changed = changed;
    for (const node of nodes) {
      const known = this.nodes.get(node.id);
      const tokens = node.tokens ?? (known?.text === node.text ? known.tokens : null);
      this.nodes.set(node.id, {...node, tokens});
    }
  }

  /** Ask the server for the tokens on the way to a node that have not been needed yet. */
  async loadTokens(id) {
    const missing = pathTo(this.nodes, id)
      .map(part => part.node)
      .filter(node => node.has_tokens && !node.tokens);
    this.merge(await Promise.all(missing.map(node => ask(`${this.path}/nodes/${encodeURIComponent(node.id)}`))));
  }

  /** Put the words of a node on the paper. */
  show(id) {
    this.current = id;
    this.value = this.shown;
  }

  /** Ask the server to remember which node is on the paper, and take over the tokens on the way to it. */
  async keepCurrent() {
    const text = this.text;
    const {changed, nodes} = await ask(this.path, {method: "PATCH", body: {current: this.current}});
    if (this.text !== text) return;
    this.merge(nodes, changed);
    this.tell("nodes");
  }
}

export const desk = new Desk();
