// Files: a branch as a file, and a file as a text.

import {desk} from "./desk.js";
import {saveFile} from "./dom.js";
import {flush} from "./saving.js";
import {ask, download, ServerError} from "./server.js";

const ENDINGS = {txt: "txt", session: "session.jsonl", json: "tree.json"};

/** Save the branch on the paper. @param {"txt"|"session"|"json"} format */
export async function exportText(format) {
  await flush();
  const query = new URLSearchParams({node: desk.current, format});
  const name =
    (desk.text.title || "text")
      .replace(/[\\/:*?"<>|\p{Cc}]+/gu, " ")
      .trim()
      .slice(0, 80) || "text";
  saveFile(await download(`${desk.path}/export?${query}`), `${name}.${ENDINGS[format]}`);
}

/**
 * Make a text of a file: plain text, a session of the terminal, or an exported tree.
 * @param {File} file
 * @returns {Promise<{id: any}>} the new text
 * @throws {ServerError} if it is none of these
 */
export async function importFile(file) {
  const query = new URLSearchParams({name: file.name});
  let content;
  try {
    content = await file.arrayBuffer();
  } catch {
    throw new ServerError(`${file.name} cannot be read. Choose a file, not a folder.`, 400);
  }
  return ask(`/api/import?${query}`, {method: "POST", body: content, type: "application/octet-stream"});
}
