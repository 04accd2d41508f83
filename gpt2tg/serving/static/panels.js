// The panels beside the paper: texts on one side, branches or settings on the other. On a narrow screen a panel covers
// the page until it is closed.

import {browserStore} from "./browser_store.js";
import {desk} from "./desk.js";
import {byId} from "./dom.js";

const SIDES = {texts: ["texts"], branches: ["branches", "settings"], settings: ["branches", "settings"]};
const wide = window.matchMedia("(min-width: 1000px)");

const buttonOf = name => byId(`show-${name}`);

/** @param {string} name @param {boolean} isOpen */
function setPanel(name, isOpen) {
  const names = wide.matches ? SIDES[name] : Object.keys(SIDES);
  for (const other of names) {
    byId(other).hidden = other !== name || !isOpen;
    buttonOf(other).setAttribute("aria-expanded", String(!byId(other).hidden));
  }
  if (wide.matches) {
    const open = Object.keys(SIDES).filter(other => !byId(other).hidden);
    browserStore.set("gpt2tg.panels", JSON.stringify(open));
  }
  coverPage();
  if (isOpen) desk.tell("text");
}

/** On a narrow screen, what is under an open panel cannot be reached. */
function coverPage() {
  const isCovered = !wide.matches && Object.keys(SIDES).some(name => !byId(name).hidden);
  for (const part of document.querySelectorAll(".column, .top")) part.inert = isCovered;
  document.body.classList.toggle("covered", isCovered);
}

function close(name) {
  setPanel(name, false);
  buttonOf(name).focus();
}

/** Close the panel that covers the page. @returns {boolean} whether there was one */
export function closeCover() {
  if (wide.matches) return false;
  const open = Object.keys(SIDES).find(name => !byId(name).hidden);
  if (open) close(open);
  return Boolean(open);
}

function fitScreen() {
  let open = [];
  if (wide.matches) {
    try {
      open = JSON.parse(browserStore.get("gpt2tg.panels") ?? '["branches"]');
    } catch {
      /* then none is open */
    }
  }
  for (const name of Object.keys(SIDES)) {
    byId(name).hidden = !open.includes(name);
    buttonOf(name).setAttribute("aria-expanded", String(!byId(name).hidden));
  }
  coverPage();
  desk.tell("text");
}

/** Make the buttons of the panels work. */
export function setUpPanels() {
  for (const name of Object.keys(SIDES)) {
    buttonOf(name).addEventListener("click", () => {
      setPanel(name, byId(name).hidden);
      if (!byId(name).hidden && !wide.matches) byId(name).querySelector(".close").focus();
    });
    byId(name)
      .querySelector(".close")
      .addEventListener("click", () => close(name));
  }
  byId("texts").addEventListener("picked", () => {
    if (!wide.matches) close("texts");
  });
  wide.addEventListener("change", fitScreen);
  fitScreen();
}
