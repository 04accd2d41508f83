// What the page says: short notices at the bottom, and words for screen readers.

import {byId, make} from "./dom.js";

const SHOWN_FOR = 12000;

let timer = 0;

/**
 * Say something to screen readers, without showing it.
 * @param {string} text
 */
export function say(text) {
  byId("spoken").textContent = text;
}

/**
 * Show a notice for a while.
 * @param {string} text
 * @param {{label: string, run: () => void}|null} action a button beside it
 * @param {boolean} stays whether it stays until it is closed
 */
export function notify(text, action = null, stays = false) {
  const box = byId("notice");
  const close = () => {
    clearTimeout(timer);
    box.replaceChildren();
  };
  const act = () => {
    close();
    action.run();
  };
  box.replaceChildren(
    ...[
      make("span", {text, dir: "auto"}),
      action && make("button", {type: "button", class: "link", text: action.label, click: act}),
      make("button", {type: "button", class: "close", "aria-label": "Close this notice", text: "×", click: close}),
    ].filter(Boolean),
  );
  clearTimeout(timer);
  const wait = () => {
    timer = setTimeout(() => (box.matches(":hover, :focus-within") ? wait() : close()), SHOWN_FOR);
  };
  if (!stays) wait();
}

/** Close the notice. */
export function closeNotice() {
  clearTimeout(timer);
  byId("notice").replaceChildren();
}

/** Show an error in plain words. @param {Error} error */
export function tellError(error) {
  if (error.name === "AbortError") return;
  const message = error.isAway
    ? "The server does not answer. What you write is kept here and sent when it is back."
    : `${error.message.charAt(0).toUpperCase()}${error.message.slice(1)}`;
  notify(message, null, true);
}
