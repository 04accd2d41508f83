// The settings of a text: plain words beside the technical name, presets, the strategy, the seed, the model.

import {desk} from "./desk.js";
import {afterPause, byId, make} from "./dom.js";
import {notify, say, tellError} from "./notices.js";
import {ask} from "./server.js";
import {stopWriting} from "./writing.js";

const STRATEGY = "decoding";
/** Comes first, because it is asked for most. */
const LENGTH = "max_new_tokens";
/** The settings that have a slider, with the range that is of use. Their field takes any value that is allowed. */
const SLIDERS = {temperature: [0, 2], top_p: [0, 1], repetition_penalty: [1, 2]};

/** What a preset leaves as it is. */
const FREE = ["seed", LENGTH];

const save = afterPause(() => {
  const text = desk.text;
  ask(desk.path, {method: "PATCH", body: {settings: desk.settings}})
    .then(answer => (text.changed = answer.changed)).catch(tellError);
}, 400);

const strategyOf = () => desk.server.strategies.find(strategy => strategy.name === valueOf(STRATEGY));

/** Return the value of a setting: that of the text, else that of the server's flags, else the default; or null. */
const valueOf = name => desk.settings[name] ?? defaultOf(name);

const defaultOf = name =>
  desk.server.defaults[name] ?? settingOf(name)?.default ?? null;

const settingOf = name => desk.server.settings.find(setting => setting.name === name);

const asSentence = text => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

/** Change settings; null puts one back to its default. */
function set(changes) {
  const settings = {...desk.settings, ...changes};
  for (const [name, value] of Object.entries(settings)) if (value === null || value === "") delete settings[name];
  desk.text.settings = settings;
  desk.tell("settings");
  save();
}

/** Return a value as the type of its setting; undefined if it is none. */
function parsed(setting, input) {
  if (setting.type === "boolean") return input.checked;
  const text = input.value.trim();
  if (setting.type === "strings") return input.value.split("\n").filter(line => line !== "");
  if (text === "") return null;
  if (setting.type !== "integer" && setting.type !== "number") return input.value;
  const number = Number(text);
  return Number.isFinite(number) && (setting.type === "number" || Number.isInteger(number)) ? number : undefined;
}

/** Return whether a number is between the limits of its setting. */
const isWithin = (setting, number) => typeof number !== "number"
  || ((setting.minimum ?? -Infinity) <= number && number <= (setting.maximum ?? Infinity));

const range = setting => {
  if (setting.minimum != null && setting.maximum != null) return `from ${setting.minimum} to ${setting.maximum}`;
  return setting.minimum != null ? `${setting.minimum} or more` : "a number";
};

function take(setting, input) {
  const value = parsed(setting, input);
  const isRight = value !== undefined && isWithin(setting, value) && input.validity?.badInput !== true;
  input.setAttribute("aria-invalid", String(!isRight));
  if (isRight) set({[setting.name]: value});
  else notify(`${setting.label}: ${range(setting)}.`);
}

function inputOf(setting, id) {
  const value = valueOf(setting.name);
  const common = {id, "aria-describedby": `${id}-help`, "data-setting": setting.name};
  const change = event => take(setting, event.target);
  if (setting.type === "boolean") {
    const box = make("input", {...common, type: "checkbox", change});
    box.checked = Boolean(value);
    return [box];
  }
  if (setting.choices?.length) {
    const options = setting.choices.map(choice => make("option", {value: choice, text: choice}));
    if (defaultOf(setting.name) === null) options.unshift(make("option", {value: "", text: "not set"}));
    const select = make("select", {...common, change}, ...options);
    select.value = value ?? "";
    return [select];
  }
  if (setting.type === "strings") {
    return [make("textarea", {...common, rows: 2, dir: "auto", change, value: (value ?? []).join("\n")})];
  }
  if (setting.type !== "integer" && setting.type !== "number") return [make("input", {...common, dir: "auto", change, value: value ?? ""})];
  const limits = {min: setting.minimum, max: setting.maximum, step: setting.type === "integer" ? 1 : "any"};
  const number = make("input", {...common, type: "number", ...limits, placeholder: setting.shown_default ? "auto" : "", value: value ?? "", change});
  if (value === null || !(setting.name in SLIDERS)) return [number];
  const [min, max] = SLIDERS[setting.name];
  const slider = make("input", {id: `${id}-slider`, type: "range", min, max, step: 0.05, value, "aria-label": setting.label,
    input: event => (number.value = event.target.value), change});
  return [slider, number];
}

/** The settings that matter whatever the strategy is. */
const isUsed = setting => !ALL_STRATEGY_SETTINGS().has(setting.name) || strategyOf().uses.includes(setting.name);

const ALL_STRATEGY_SETTINGS = () => new Set(desk.server.strategies.flatMap(strategy => strategy.uses));

function field(setting) {
  const id = `setting-${setting.name}`;
  const help = [asSentence(setting.help)];
  if (setting.shown_default && valueOf(setting.name) === null) help.push(`Without a value: ${setting.shown_default}.`);
  if (!isUsed(setting)) help.push("Not used by this strategy.");
  const isChanged = setting.name in desk.settings;
  return make("div", {class: `setting ${setting.type}${isUsed(setting) ? "" : " unused"}${isChanged ? " changed" : ""}`},
    make("label", {for: id}, make("span", {text: setting.label}), " ", make("code", {text: setting.name})),
    make("div", {class: "inputs"}, ...inputOf(setting, id),
      isChanged ? make("button", {type: "button", class: "link", text: "default", "aria-label": `${setting.label}: back to the default`,
        click: () => set({[setting.name]: null})}) : null),
    make("p", {class: "hint", id: `${id}-help`, text: help.join(" ")}));
}

function strategyField() {
  const select = make("select", {id: "strategy", "aria-describedby": "strategy-help", change: event => set({[STRATEGY]: event.target.value})},
    ...desk.server.strategies.map(strategy => make("option", {value: strategy.name, text: strategy.label ?? strategy.name})));
  select.value = valueOf(STRATEGY);
  return make("div", {class: "setting"},
    make("label", {for: "strategy"}, make("span", {text: settingOf(STRATEGY).label}), " ", make("code", {text: STRATEGY})),
    make("div", {class: "inputs"}, select),
    make("p", {class: "hint", id: "strategy-help", text: asSentence(strategyOf()?.summary ?? "")}));
}

/** Return the controls of the seed: new each time or fixed, and that of the words on the paper. */
function seedField() {
  const seed = valueOf("seed");
  const used = desk.nodes.get(desk.current)?.settings?.seed ?? null;
  const isStarted = desk.server.defaults.seed != null;
  const fix = value => set({seed: value});
  const radio = (id, label, isChecked, value) => {
    const input = make("input", {type: "radio", name: "seed", id, change: () => fix(value())});
    input.checked = isChecked;
    input.disabled = isStarted && id === "seed-new";
    return make("label", {class: "inline", for: id}, input, ` ${label}`);
  };
  const number = make("input", {type: "number", id: "seed-number", min: 0, step: 1, "aria-label": "Seed", value: seed ?? "", disabled: seed === null,
    change: event => /^\d{1,18}$/.test(event.target.value) && fix(Number(event.target.value))});
  return make("fieldset", {class: "setting"},
    make("legend", {}, make("span", {text: "Chance"}), " ", make("code", {text: "seed"})),
    make("div", {class: "inputs"},
      radio("seed-new", "new each time", seed === null, () => null),
      radio("seed-fixed", "fixed:", seed !== null, () => used ?? 1), number),
    make("p", {class: "hint"}, "The same seed, words and settings give the same text. ",
      isStarted ? `The server was started with seed ${desk.server.defaults.seed}. ` : "",
      used !== null && used !== seed ? make("button", {type: "button", class: "link", text: `Use ${used}, the seed of these words`, click: () => fix(used)}) : null));
}

function presets() {
  let chosen = null;
  const buttons = desk.server.presets.map(preset => {
    const isOn = Object.entries(preset.settings).every(([name, value]) => String(valueOf(name)) === String(value))
      && Object.keys(desk.settings).every(name => FREE.includes(name) || name in preset.settings);
    const apply = () => {
      const kept = Object.fromEntries(Object.entries(desk.settings).filter(([name]) => FREE.includes(name)));
      desk.text.settings = {};
      set({...preset.settings, ...kept});
      say(`${preset.label}: ${preset.description ?? ""}`);
    };
    if (isOn) chosen = preset;
    return make("button", {type: "button", "aria-pressed": String(isOn), title: preset.description, text: preset.label, click: apply});
  });
  return make("div", {class: "presets", role: "group", "aria-label": "Presets"},
    make("div", {class: "buttons"}, ...buttons),
    make("p", {class: "hint", text: chosen?.description ?? "Settings of your own."}));
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
  desk.tell("settings");
}

function modelField() {
  const {models, model} = desk.server;
  const select = make("select", {id: "model", "aria-describedby": "model-note", change: event => switchModel(event.target).catch(tellError)},
    ...models.map(other => make("option", {value: other.name, disabled: other.can_load === false, title: other.note, text: other.kind === "adapter" ? `${other.name} (adapter)` : other.name})));
  select.value = (models.find(other => other.is_loaded) ?? {name: model}).name;
  const note = models.find(other => other.name === select.value)?.note ?? "";
  return make("div", {class: "setting"},
    make("label", {for: "model", text: "Model"}),
    make("div", {class: "inputs"}, models.length > 1 ? select : make("strong", {text: model, id: "model"})),
    make("p", {class: "hint", id: "model-note", role: "status", text:
      note ? asSentence(note) : (models.length > 1 ? "" : "Start with --models_folder to choose among several.")}));
}

function draw() {
  const panel = byId("settings-fields");
  if (!desk.text || byId("settings").hidden) return;
  const focused = panel.contains(document.activeElement) ? document.activeElement : null;
  const [focusId, focusText] = [focused?.id, focused?.textContent];
  const isOpen = panel.querySelector("details")?.open ?? false;
  const shown = desk.server.settings.filter(setting => ![STRATEGY, "seed"].includes(setting.name));
  const basic = shown.filter(setting => setting.is_common && isUsed(setting))
    .sort((a, b) => Number(b.name === LENGTH) - Number(a.name === LENGTH));
  const rest = shown.filter(setting => !basic.includes(setting));
  const more = make("details", {}, make("summary", {text: "More settings"}), ...rest.map(field));
  more.open = isOpen;
  panel.replaceChildren(modelField(), presets(), strategyField(), ...basic.map(field), seedField(), more);
  if (!focused) return;
  const again = focusId ? byId(focusId) : [...panel.querySelectorAll("button")].find(button => button.textContent === focusText);
  again?.focus({preventScroll: true});
}

/** Draw the settings whenever they change. */
export function setUpSettings() {
  desk.on("text settings", draw);
  desk.on("writing", () => !desk.writing && draw());
}
