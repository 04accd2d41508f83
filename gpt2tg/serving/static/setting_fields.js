// One field for each setting: a slider, a number, a box to tick, a list or lines of text.

import {desk} from "./desk.js";
import {make} from "./dom.js";
import {notify} from "./notices.js";
import {asSentence, defaultOf, isUsed, setValues, valueOf} from "./setting_values.js";

/** The settings that have a slider, with the range that is of use. Their field takes any value that is allowed. */
const SLIDERS = {temperature: [0, 2], top_p: [0, 1], repetition_penalty: [1, 2]};
/** A maximum this large only guards against overflow. */
const NO_LIMIT = 1e6;

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
const isWithin = (setting, number) =>
  typeof number !== "number" || ((setting.minimum ?? -Infinity) <= number && number <= (setting.maximum ?? Infinity));

const range = setting => {
  const isBounded = setting.minimum != null && setting.maximum != null && setting.maximum < NO_LIMIT;
  if (isBounded) return `from ${setting.minimum} to ${setting.maximum}`;
  return setting.minimum != null ? `${setting.minimum} or more` : "a number";
};

function take(setting, input) {
  const value = parsed(setting, input);
  const isRight = value !== undefined && isWithin(setting, value) && input.validity?.badInput !== true;
  input.setAttribute("aria-invalid", String(!isRight));
  if (isRight) {
    setValues({[setting.name]: value});
    input.closest(".setting").dispatchEvent(new Event("changed"));
  } else notify(`${setting.label}: ${range(setting)}.`);
}

function inputOf(setting, id) {
  const common = {id, "aria-describedby": `${id}-help`};
  const change = event => take(setting, event.target);
  if (setting.type === "boolean") {
    return [make("input", {...common, type: "checkbox", change})];
  }
  if (setting.choices?.length) {
    const options = setting.choices.map(choice => make("option", {value: choice, text: choice}));
    if (defaultOf(setting.name) === null) options.unshift(make("option", {value: "", text: "not set"}));
    return [make("select", {...common, change}, ...options)];
  }
  if (setting.type === "strings") {
    return [make("textarea", {...common, rows: 2, dir: "auto", change})];
  }
  if (setting.type !== "integer" && setting.type !== "number") return [make("input", {...common, dir: "auto", change})];
  const limits = {min: setting.minimum, max: setting.maximum, step: setting.type === "integer" ? 1 : "any"};
  const number = make("input", {
    ...common,
    type: "number",
    ...limits,
    placeholder: setting.shown_default ? "auto" : "",
    change,
  });
  if (valueOf(setting.name) === null || !(setting.name in SLIDERS)) return [number];
  const [min, max] = SLIDERS[setting.name];
  const slider = make("input", {
    id: `${id}-slider`,
    type: "range",
    min,
    max,
    step: 0.05,
    "aria-label": setting.label,
    input: event => (number.value = event.target.value),
    change,
  });
  return [slider, number];
}

/** Show the value of a setting in the inputs that are there already, so that nothing loses the focus. */
function refresh(box, setting) {
  const value = valueOf(setting.name);
  const isChanged = setting.name in desk.settings;
  box.classList.toggle("changed", isChanged);
  box.querySelector("button").hidden = !isChanged;
  for (const input of box.querySelectorAll("input, select, textarea")) {
    if (input.type === "checkbox") input.checked = Boolean(value);
    else input.value = Array.isArray(value) ? value.join("\n") : (value ?? "");
  }
}

/**
 * Return the field of a setting.
 * @param {Object} setting as the server describes it
 * @returns {HTMLElement}
 */
export function settingField(setting) {
  const id = `setting-${setting.name}`;
  const help = [asSentence(setting.help)];
  if (setting.shown_default && defaultOf(setting.name) === null)
    help.push(`Without a value: ${setting.shown_default}.`);
  if (!isUsed(setting)) help.push("Not used by this strategy.");
  const reset = () => {
    setValues({[setting.name]: null});
    refresh(box, setting);
    box.querySelector("input, select, textarea").focus();
  };
  const box = make(
    "div",
    {class: `setting ${setting.type}`, changed: () => refresh(box, setting)},
    make("label", {for: id}, make("span", {text: setting.label}), " ", make("code", {text: setting.name})),
    make(
      "div",
      {class: "inputs"},
      ...inputOf(setting, id),
      make("button", {
        type: "button",
        class: "link",
        text: "default",
        "aria-label": `${setting.label}: back to the default`,
        click: reset,
      }),
    ),
    make("p", {class: "hint", id: `${id}-help`, text: help.join(" ")}),
  );
  refresh(box, setting);
  return box;
}
