// Dialogs: the browser's own <dialog>, which keeps the focus inside and gives it back.

import {make} from "./dom.js";

/**
 * Open a dialog and wait until it is closed.
 * @param {string} title
 * @param {(close: (answer: any) => void) => Node[]} content makes what it contains
 * @param {string} kind a class
 * @returns {Promise<any>} what `close` was given; null after Esc
 */
export function openDialog(title, content, kind = "") {
  return new Promise(resolve => {
    const id = `dialog-${Date.now()}`;
    const close = answer => {
      dialog.remove();
      if (before?.isConnected) before.focus();
      resolve(answer);
    };
    const before = document.activeElement;
    const dialog = make("dialog", {class: kind, "aria-labelledby": id});
    dialog.append(make("h2", {id, text: title}), ...content(close));
    dialog.addEventListener("cancel", event => {
      event.preventDefault();
      close(null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/**
 * Ask for a line of text.
 * @param {{title: string, label: string, value?: string, confirm: string, type?: string, hint?: string}} question
 * @returns {Promise<string|null>} null if the person went back
 */
export function askFor({title, label, value = "", confirm, type = "text", hint = ""}) {
  return openDialog(title, close => {
    const input = make("input", {type, value, id: "dialog-answer", dir: "auto", autocomplete: "off", maxlength: 200});
    const submit = event => {
      event.preventDefault();
      close(input.value);
    };
    return [
      make(
        "form",
        {submit},
        make("label", {for: "dialog-answer", text: label}),
        input,
        hint ? make("p", {class: "hint", text: hint}) : null,
        make(
          "div",
          {class: "buttons"},
          make("button", {type: "button", text: "Cancel", click: () => close(null)}),
          make("button", {type: "submit", class: "primary", text: confirm}),
        ),
      ),
    ];
  });
}

/**
 * Ask yes or no.
 * @param {{title: string, text: string, confirm: string}} question
 * @returns {Promise<boolean>}
 */
export async function confirmThat({title, text, confirm}) {
  const answer = await openDialog(title, close => [
    make("p", {text, dir: "auto"}),
    make(
      "div",
      {class: "buttons"},
      make("button", {type: "button", text: "Cancel", click: () => close(false)}),
      make("button", {type: "button", class: "primary", text: confirm, click: () => close(true)}),
    ),
  ]);
  return answer === true;
}
