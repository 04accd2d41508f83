// Small helpers for elements. A text always becomes a text node, so markup in it is never markup here.

/** @param {string} id @returns {HTMLElement} */
export const byId = id => document.getElementById(id);

/**
 * Make an element.
 * @param {string} tag
 * @param {Object<string, any>} properties attributes by name; a function becomes a listener, `true` an empty
 *   attribute; `false`, `null` and `undefined` are left out; `class` and `text` as one would think
 * @param {...(Node|string|null)} children
 * @returns {HTMLElement}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "text") element.textContent = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter(child => child !== null));
  return element;
}

/**
 * Return a function that runs `action` once, `pause` milliseconds after its last call.
 * @param {() => void} action @param {number} pause
 */
export function afterPause(action, pause) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, pause);
  };
}

/**
 * Return a function that runs `action` once before the next frame, however often it is called.
 * @param {() => void} action
 */
export function onceAFrame(action) {
  let isAsked = false;
  return () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      action();
    });
  };
}

/**
 * Offer a text as a file to save.
 * @param {Blob} blob @param {string} name
 */
export function saveFile(blob, name) {
  const link = make("a", {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
