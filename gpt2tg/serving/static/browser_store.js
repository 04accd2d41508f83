// What the browser keeps for the page. Where its storage is forbidden or full, the page remembers until it is closed.

/** Strings by name, in a storage of the browser as far as it takes them. */
class BrowserStore {
  #storageName;
  #remembered = new Map();

  /** @param {"localStorage"|"sessionStorage"} storageName */
  constructor(storageName) {
    this.#storageName = storageName;
  }

  /** Run an action on the storage. Merely naming a forbidden one is an error. */
  #use(action, otherwise) {
    try {
      return action(window[this.#storageName]);
    } catch {
      return otherwise;
    }
  }

  /** @param {string} name @returns {string|null} */
  get(name) {
    return this.#remembered.get(name) ?? this.#use(storage => storage.getItem(name), null);
  }

  /** @param {string} name @param {string|number} value */
  set(name, value) {
    const isKept = this.#use(storage => {
      storage.setItem(name, value);
      return true;
    }, false);
    if (isKept) this.#remembered.delete(name);
    else this.#remembered.set(name, String(value));
  }

  /** @param {string} name */
  remove(name) {
    this.#remembered.delete(name);
    this.#use(storage => storage.removeItem(name));
  }

  /** @returns {string[]} */
  names() {
    return [...new Set([...this.#remembered.keys(), ...this.#use(Object.keys, [])])];
  }
}

/** For all tabs, until the person clears it. */
export const browserStore = new BrowserStore("localStorage");

/** For this tab, until it is closed. */
export const tabStore = new BrowserStore("sessionStorage");
