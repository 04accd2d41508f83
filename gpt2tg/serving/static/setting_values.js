// The values of the settings: those of the text, over those of the server's flags, over the defaults.

import {desk} from "./desk.js";
import {tellError} from "./notices.js";
import {ask} from "./server.js";

export const STRATEGY = "decoding";

/** @param {string} name @returns {Object} a setting as the server describes it */
export const settingOf = name => desk.server.settings.find(setting => setting.name === name);

export const strategyOf = () => desk.server.strategies.find(strategy => strategy.name === valueOf(STRATEGY));

export const defaultOf = name => desk.server.defaults[name] ?? settingOf(name)?.default ?? null;

/** Return the value of a setting; null if it has none. */
export const valueOf = name => desk.settings[name] ?? defaultOf(name);

/** Return whether the strategy uses a setting. Those that no strategy has for itself matter always. */
export const isUsed = setting =>
  strategyOf().uses.includes(setting.name) ||
  !desk.server.strategies.some(strategy => strategy.uses.includes(setting.name));

/** Return the settings of the text that its strategy uses. */
export const usedSettings = () =>
  Object.fromEntries(Object.entries(desk.settings).filter(([name]) => name === STRATEGY || isUsed({name})));

export const asSentence = text => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

let saving = Promise.resolve();

/**
 * Change settings of the text and tell who listens for "settings".
 * @param {Object} changes by name; null puts one back to its default
 * @param {boolean} replaces whether all others go back to their defaults
 */
export function setValues(changes, replaces = false) {
  const settings = replaces ? {...changes} : {...desk.settings, ...changes};
  for (const [name, value] of Object.entries(settings)) if (value === null || value === "") delete settings[name];
  const {text, path} = desk;
  text.settings = settings;
  desk.tell("settings");
  const send = () => ask(path, {method: "PATCH", body: {settings}}).then(answer => (text.changed = answer.changed));
  saving = saving.then(send).catch(tellError);
}
