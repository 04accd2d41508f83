// "Compare": the same beginning, continued by several strategies, with a table of metrics and the report.

import {desk} from "./desk.js";
import {byId, make} from "./dom.js";
import {say, tellError} from "./notices.js";
import {asSentence} from "./setting_values.js";
import {stream} from "./server.js";

/** Ticked at first, if the server has them: one that always writes the same, one that draws. */
const FIRST_CHOICE = ["greedy", "beam", "top_p"];

let controller = null;

function drawStrategies() {
  const fields = desk.server.strategies.map(({name, label, summary}) => {
    const box = make("input", {type: "checkbox", value: name, id: `compare-${name}`});
    box.checked = FIRST_CHOICE.includes(name);
    const words = [make("span", {text: label}), make("code", {text: name})];
    return make("label", {class: "inline", for: box.id, title: asSentence(summary)}, box, ...words);
  });
  byId("compare-strategies").replaceChildren(make("legend", {text: "Strategies"}), ...fields);
}

function table({columns, rows}) {
  return make(
    "div",
    {class: "scroll", tabindex: 0, role: "region", "aria-label": "Metrics"},
    make(
      "table",
      {},
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          make("th", {scope: "col", text: "Strategy"}),
          ...columns.map(column => make("th", {scope: "col", title: column.meaning, text: column.heading})),
        ),
      ),
      make(
        "tbody",
        {},
        ...rows.map(row =>
          make(
            "tr",
            {},
            make("th", {scope: "row", text: row.name}),
            ...columns.map(column => make("td", {text: row.shown[column.name] ?? "–"})),
          ),
        ),
      ),
    ),
  );
}

const meanings = columns =>
  make(
    "details",
    {},
    make("summary", {text: "What the metrics mean"}),
    make(
      "dl",
      {},
      ...columns.flatMap(column => [make("dt", {text: column.heading}), make("dd", {text: column.meaning})]),
    ),
  );

function show(event) {
  byId("compare-result").replaceChildren(
    make("h2", {text: "Metrics"}),
    table(event.table),
    meanings(event.table.columns),
    make("h2", {text: "Report"}),
    make(
      "p",
      {},
      make("a", {href: event.report, target: "_blank", rel: "noopener", text: "Open the report in a tab of its own"}),
      " to save or print it.",
    ),
    make("iframe", {src: event.report, title: "Report of the comparison", sandbox: "allow-scripts"}),
  );
  say("The comparison is ready.");
}

async function run() {
  const strategies = [...byId("compare-strategies").querySelectorAll(":checked")].map(box => box.value);
  const prompt = byId("compare-prompt").value;
  if (!prompt.trim() || !strategies.length) {
    byId("compare-state").textContent = prompt.trim() ? "Tick at least one strategy." : "Write a beginning first.";
    return;
  }
  controller = new AbortController();
  const [bar, state, button] = [byId("compare-bar"), byId("compare-state"), byId("compare-button")];
  bar.hidden = false;
  bar.removeAttribute("value");
  button.textContent = "Stop";
  const {max_new_tokens: _, num_sequences: __, ...settings} = desk.settings;
  const body = {
    prompt,
    strategies: strategies.join(),
    settings,
    num_sequences: Number(byId("compare-texts").value),
    max_new_tokens: Number(byId("compare-length").value),
  };
  try {
    for await (const event of stream("/api/compare", body, controller.signal)) {
      if (event.type === "progress") {
        bar.max = event.total;
        bar.value = event.done;
        state.textContent = event.name
          ? `${event.name} (${event.done} of ${event.total})`
          : `${event.done} of ${event.total}`;
      } else if (event.type === "end") show(event);
      else if (event.type === "error") throw new Error(event.error.message);
    }
    state.textContent = "";
  } catch (error) {
    state.textContent = error.name === "AbortError" ? "Stopped." : "";
    tellError(error);
  } finally {
    controller = null;
    bar.hidden = true;
    button.textContent = "Compare";
  }
}

/** Begin with the end of the text that is open. */
export function openComparing() {
  if (!byId("compare-prompt").value.trim())
    byId("compare-prompt").value = desk.value
      .trim()
      .slice(-400)
      .replace(/^\S*\s/, match => (desk.value.length > 400 ? "" : match));
}

/** Make the page "Compare" work. */
export function setUpComparing() {
  drawStrategies();
  byId("compare-form").addEventListener("submit", event => {
    event.preventDefault();
    if (controller) controller.abort();
    else run();
  });
}
