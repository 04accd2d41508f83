// The tree of a text as an outline: the branch on the paper is a straight line, the others lean off it.

import {compareBranches} from "./branch_comparison.js";
import {desk} from "./desk.js";
import {askFor, openDialog} from "./dialogs.js";
import {byId, make, onceAFrame} from "./dom.js";
import {exportText} from "./files.js";
import {notify, tellError} from "./notices.js";
import {tellOtherTabs} from "./saving.js";
import {ask} from "./server.js";
import {asWords, countWords, cut, endOfBranch, firstWords, outline} from "./tree.js";
import {showNode} from "./writing.js";

const tree = byId("tree");
const WHO = {typed: "You", generated: "Model", chosen: "Your pick"};
/** Deeper branches are indented no further, so that their words stay readable. */
const MOST_INDENT = 5;

/** While the person chooses the other branch to compare with: the id of the first. */
let comparing = null;

function titleOf(node) {
  if (node.name) return node.name;
  return (
    firstWords(node.text, 48) ||
    (node.text ? "(only spaces)" : node.parent === null ? "(empty beginning)" : "(cut here)")
  );
}

/** Return the words that a node stands instead of, if it leaves its parent before the end. */
function insteadOf(node) {
  const parent = desk.nodes.get(node.parent);
  if (!parent) return "";
  const rest = parent.text.slice(cut(parent.text, node.at).length);
  return rest.trim() ? `instead of “${firstWords(rest, 24)}”` : "";
}

function row({node, level, isOnPaper}) {
  const isCurrent = node.id === desk.current;
  const notes = [
    WHO[node.kind],
    asWords(countWords(node.text)),
    insteadOf(node),
    node.finish_reason === "interrupted" ? "stopped" : "",
    node.pruned ? "hidden" : "",
  ]
    .filter(Boolean)
    .join(", ");
  const item = make(
    "li",
    {
      role: "treeitem",
      "aria-level": level,
      "aria-selected": String(isCurrent),
      "data-id": node.id,
      tabindex: isCurrent ? 0 : -1,
      class: `${node.kind}${isOnPaper ? " on-paper" : ""}${node.pruned ? " pruned" : ""}${node.name ? " named" : ""}`,
      click: () => choose(node.id),
    },
    make("span", {class: "words", text: titleOf(node), dir: "auto"}),
    make("span", {class: "hint", text: notes}),
  );
  item.style.setProperty("--level", Math.min(MOST_INDENT, level - 1));
  return item;
}

function draw() {
  if (!desk.text || byId("branches").hidden) return;
  const focused = tree.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  const rows = outline(desk.nodes, desk.current, byId("with-pruned").checked);
  tree.replaceChildren(...rows.map(row));
  if (!tree.querySelector("[tabindex='0']")) tree.firstElementChild?.setAttribute("tabindex", "0");
  if (focused !== null) focusItem(itemOf(focused) ?? tree.querySelector("[tabindex='0']"));
  const current = tree.querySelector("[aria-selected='true']");
  if (current && focused === null) keepInSight(current);
  const node = desk.nodes.get(desk.current);
  byId("prune").textContent = node?.pruned ? "Bring back" : "Hide";
  byId("prune").disabled = !node || node.parent === null;
  byId("to-end").disabled = endOfBranch(desk.nodes, desk.current) === desk.current;
  byId("compare-branches").disabled = rows.length < 2;
  byId("pruned-count").textContent = [...desk.nodes.values()].filter(other => other.pruned).length;
  byId("with-pruned").closest("label").hidden = byId("pruned-count").textContent === "0";
}

/** Scroll the list alone, never the page. */
function keepInSight(item) {
  const list = byId("tree-scroll");
  const [top, bottom] = [item.offsetTop - list.offsetTop, item.offsetTop - list.offsetTop + item.offsetHeight];
  if (top < list.scrollTop) list.scrollTop = top - 20;
  else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight + 20;
}

const itemOf = id => [...tree.children].find(item => item.dataset.id === String(id));

/** Return the id as the server sent it; an attribute is always a string. */
const idOf = item => [...desk.nodes.keys()].find(id => String(id) === item.dataset.id);

function focusItem(item) {
  if (!item) return;
  for (const other of tree.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  item.tabIndex = 0;
  item.focus();
}

async function choose(id) {
  if (comparing === null) {
    await showNode(id);
    return;
  }
  const first = comparing;
  endComparing();
  if (id !== first) await compareBranches(first, id);
}

function endComparing() {
  comparing = null;
  byId("compare-hint").hidden = true;
  byId("compare-branches").textContent = "Compare";
}

function beginComparing() {
  if (comparing !== null) {
    endComparing();
    return;
  }
  comparing = desk.current;
  byId("compare-branches").textContent = "Cancel";
  byId("compare-hint").hidden = false;
  focusItem(itemOf(desk.current));
}

async function change(id, what) {
  const answer = await ask(`${desk.path}/nodes/${encodeURIComponent(id)}`, {method: "PATCH", body: what});
  desk.merge(answer.nodes, answer.changed);
  if (answer.current !== undefined && answer.current !== desk.current && desk.isSaved) desk.show(answer.current);
  desk.tell("nodes");
  tellOtherTabs();
}

async function name() {
  const node = desk.nodes.get(desk.current);
  const given = await askFor({
    title: "Name this branch",
    label: "Name",
    value: node.name ?? "",
    confirm: "Name it",
    hint: "Leave it empty to show its first words.",
  });
  if (given !== null) await change(node.id, {name: given.trim()});
}

async function prune() {
  const node = desk.nodes.get(desk.current);
  if (node.pruned) {
    await change(node.id, {pruned: false});
    return;
  }
  const {id, parent} = node;
  await change(id, {pruned: true});
  if (desk.current === id) await showNode(parent);
  notify("The branch is hidden, not deleted.", {
    label: "Bring it back",
    run: () =>
      change(id, {pruned: false})
        .then(() => showNode(id))
        .catch(tellError),
  });
}

async function saveAs() {
  const format = await openDialog("Save this branch as a file", close => {
    const button = (value, title, text) =>
      make(
        "button",
        {type: "button", class: "choice", click: () => close(value)},
        make("strong", {text: title}),
        make("span", {text}),
      );
    return [
      button("txt", "Plain text", "The words on the paper, for any program."),
      button("session", "Session", "Opens in the terminal with /load, with its settings and seeds."),
      button("json", "The whole tree", "All branches with all probabilities. Opens here again."),
      make("div", {class: "buttons"}, make("button", {type: "button", text: "Cancel", click: () => close(null)})),
    ];
  });
  if (format) await exportText(format);
}

function keys(event) {
  const items = [...tree.children];
  const at = items.indexOf(document.activeElement);
  if (at < 0) return;
  const steps = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1};
  if (event.key in steps) focusItem(items[Math.min(items.length - 1, Math.max(0, steps[event.key]))]);
  else if (event.key === "Enter" || event.key === " ") choose(idOf(items[at])).catch(tellError);
  else if (event.key === "Escape" && comparing !== null) endComparing();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

/** Draw the outline whenever the tree changes, and make its buttons work. */
export function setUpBranches() {
  desk.on("text nodes", onceAFrame(draw));
  const press = (id, action) => byId(id).addEventListener("click", () => Promise.resolve(action()).catch(tellError));
  press("name-branch", name);
  press("prune", prune);
  press("to-end", () => showNode(endOfBranch(desk.nodes, desk.current)));
  press("compare-branches", beginComparing);
  press("export", saveAs);
  byId("with-pruned").addEventListener("change", draw);
  tree.addEventListener("keydown", keys);
}
