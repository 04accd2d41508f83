// The settings of a text: the model, presets, the strategy, the seed, and a field for each of the others.

import {desk} from "./desk.js";
import {byId, make, onceAFrame} from "./dom.js";
import {say, tellError} from "./notices.js";
import {ask} from "./server.js";
import {settingField} from "./setting_fields.js";
import {asSentence, isUsed, settingOf, setValues, STRATEGY, strategyOf, valueOf} from "./setting_values.js";
import {stopWriting} from "./writing.js";

/** Comes first, because it is asked for most. */
const LENGTH = "max_new_tokens";
/** What a preset leaves as it is. */
const FREE = ["seed", LENGTH];

/** Change settings on which other fields depend, and draw them again. */
function choose(changes, replaces = false) {
  setValues(changes, replaces);
  draw();
}

function strategyField() {
  const select = make(
    "select",
    {id: "strategy", "aria-describedby": "strategy-help", change: event => choose({[STRATEGY]: event.target.value})},
    ...desk.server.strategies.map(strategy => make("option", {value: strategy.name, text: strategy.label})),
  );
  select.value = valueOf(STRATEGY);
  return make(
    "div",
    {class: "setting"},
    make(
      "label",
      {for: "strategy"},
      make("span", {text: settingOf(STRATEGY).label}),
      " ",
      make("code", {text: STRATEGY}),
    ),
    make("div", {class: "inputs"}, select),
    make(
      "p",
      {class: "hint", id: "strategy-help"},
      make("code", {text: strategyOf().name}),
      ` ${asSentence(strategyOf().summary)}`,
    ),
  );
}

/** Return the controls of the seed: new each time or fixed, and that of the words on the paper. */
function seedField() {
  const seed = valueOf("seed");
  const used = desk.nodes.get(desk.current)?.settings?.seed ?? null;
  const isStarted = desk.server.defaults.seed != null;
  const fix = value => choose({seed: value});
  const radio = (id, label, isChecked, value) => {
    const input = make("input", {type: "radio", name: "seed", id, change: () => fix(value())});
    input.checked = isChecked;
    input.disabled = isStarted && id === "seed-new";
    return make("label", {class: "inline", for: id}, input, ` ${label}`);
  };
  const number = make("input", {
    type: "number",
    id: "seed-number",
    min: 0,
    step: 1,
    "aria-label": "Seed",
    value: seed ?? "",
    disabled: seed === null,
    change: event => /^\d{1,18}$/.test(event.target.value) && fix(Number(event.target.value)),
  });
  return make(
    "fieldset",
    {class: "setting seed"},
    make("legend", {}, make("span", {text: "Chance"}), " ", make("code", {text: "seed"})),
    make(
      "div",
      {class: "inputs"},
      radio("seed-new", "new each time", seed === null, () => null),
      radio("seed-fixed", "fixed:", seed !== null, () => used ?? 1),
      number,
    ),
    make(
      "p",
      {class: "hint"},
      `${asSentence(settingOf("seed").help)} `,
      isStarted ? `The server was started with seed ${desk.server.defaults.seed}. ` : "",
      used !== null && used !== seed
        ? make("button", {
            type: "button",
            class: "link",
            text: `Use ${used}, the seed of these words`,
            click: () => fix(used),
          })
        : null,
    ),
  );
}

function presets() {
  let chosen = null;
  const buttons = desk.server.presets.map(preset => {
    const isOn =
      Object.entries(preset.settings).every(([name, value]) => String(valueOf(name)) === String(value)) &&
      Object.keys(desk.settings).every(name => FREE.includes(name) || name in preset.settings);
    const apply = () => {
      const kept = Object.fromEntries(Object.entries(desk.settings).filter(([name]) => FREE.includes(name)));
      choose({...preset.settings, ...kept}, true);
      say(`${preset.label}: ${preset.description ?? ""}`);
    };
    if (isOn) chosen = preset;
    return make("button", {
      type: "button",
      "aria-pressed": String(isOn),
      title: preset.description,
      text: preset.label,
      click: apply,
    });
  });
  return make(
    "div",
    {class: "presets", role: "group", "aria-label": "Presets"},
    make("div", {class: "buttons"}, ...buttons),
    make("p", {class: "hint", text: chosen?.description ?? "Settings of your own."}),
  );
}

async function switchModel(select) {
  await stopWriting();
  const name = select.value;
  byId("model-note").textContent = `Loading ${name} …`;
  select.disabled = true;
  try {
    desk.server = await ask("/api/model", {method: "POST", body: {name}});
    say(`${name} is loaded.`);
  } catch (error) {
    tellError(error);
  }
  draw();
}

function modelField() {
  const {models, model} = desk.server;
  const select = make(
    "select",
    {id: "model", "aria-describedby": "model-note", change: event => switchModel(event.target).catch(tellError)},
    ...models.map(other =>
      make("option", {
        value: other.name,
        disabled: other.can_load === false,
        title: other.note,
        text: other.kind === "adapter" ? `${other.name} (adapter)` : other.name,
      }),
    ),
  );
  select.value = (models.find(other => other.is_loaded) ?? {name: model}).name;
  const note = models.find(other => other.name === select.value)?.note ?? "";
  return make(
    "div",
    {class: "setting"},
    make(models.length > 1 ? "label" : "span", {for: models.length > 1 ? "model" : null, text: "Model"}),
    make("div", {class: "inputs"}, models.length > 1 ? select : make("strong", {text: model})),
    make("p", {
      class: "hint",
      id: "model-note",
      role: "status",
      text: note ? asSentence(note) : models.length > 1 ? "" : "Start with --models_folder to choose among several.",
    }),
  );
}

function draw() {
  const panel = byId("settings-fields");
  if (!desk.text || byId("settings").hidden) return;
  const focused = panel.contains(document.activeElement) ? document.activeElement : null;
  const [focusId, focusText] = [focused?.id, focused?.textContent];
  const isOpen = panel.querySelector("details")?.open ?? false;
  const shown = desk.server.settings.filter(setting => ![STRATEGY, "seed"].includes(setting.name));
  const basic = shown
    .filter(setting => setting.is_common && isUsed(setting))
    .sort((a, b) => Number(b.name === LENGTH) - Number(a.name === LENGTH));
  const rest = shown.filter(setting => !basic.includes(setting));
  const more = make("details", {}, make("summary", {text: "More settings"}), ...rest.map(settingField));
  more.open = isOpen;
  panel.replaceChildren(modelField(), presets(), strategyField(), ...basic.map(settingField), seedField(), more);
  if (!focused) return;
  const again = focusId
    ? byId(focusId)
    : [...panel.querySelectorAll("button")].find(button => button.textContent === focusText);
  again?.focus({preventScroll: true});
}

/** Draw the settings whenever they change. */
export function setUpSettings() {
  desk.on("text", draw);
  desk.on("settings", () => byId("settings-fields").querySelector(".presets")?.replaceWith(presets()));
  desk.on(
    "nodes",
    onceAFrame(() => {
      const seed = byId("settings-fields").querySelector(".seed");
      if (seed && !seed.contains(document.activeElement)) seed.replaceWith(seedField());
    }),
  );
}
