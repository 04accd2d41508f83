// The start of the page: the server's state, the last text, and which of the three pages is shown.

import {setUpActions} from "./actions.js";
import {setUpAlternatives} from "./alternatives.js";
import {setUpBranches} from "./branches.js";
import {setUpCandidates} from "./candidates.js";
import {openComparing, setUpComparing} from "./comparing.js";
import {desk} from "./desk.js";
import {askFor} from "./dialogs.js";
import {byId} from "./dom.js";
import {tellError} from "./notices.js";
import {setUpPanels} from "./panels.js";
import {paper, setUpPaper} from "./paper.js";
import {setUpReading} from "./reading.js";
import {setUpSaving} from "./saving.js";
import {ask, setKeyDialog} from "./server.js";
import {setUpSettings} from "./settings.js";
import {openLastText, reloadText, setUpTexts} from "./texts.js";

const PAGES = ["write", "read", "compare"];
/** How often the page looks for a server that does not answer at the start, in milliseconds. */
const START_AGAIN = 2000;

/** Show the page that the address names. */
function route() {
  const page = PAGES.find(name => location.hash === `#/${name}`) ?? "write";
  for (const name of PAGES) {
    byId(name).hidden = name !== page;
    const link = byId(`to-${name}`);
    if (name === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.page = page;
  if (page === "compare") openComparing();
  window.scrollTo(0, 0);
}

async function start() {
  setKeyDialog(wasWrong =>
    askFor({
      title: wasWrong ? "This is not the key of the server" : "This server wants a key",
      label: "Key",
      confirm: "Open",
      type: "password",
      hint: "Whoever started the server knows it. It is kept until you close this tab.",
    }),
  );
  for (;;) {
    try {
      desk.server = await ask("/api/state");
      break;
    } catch (error) {
      tellError(error);
      if (!error.isAway) return;
      await new Promise(resolve => setTimeout(resolve, START_AGAIN));
    }
  }
  const parts = [
    setUpPaper,
    setUpActions,
    setUpAlternatives,
    setUpCandidates,
    setUpBranches,
    setUpSettings,
    setUpTexts,
    setUpReading,
    setUpComparing,
  ];
  for (const setUp of parts) setUp();
  setUpSaving(() => reloadText().catch(tellError));
  try {
    await openLastText();
  } catch (error) {
    tellError(error);
    return;
  }
  setUpPanels();
  window.addEventListener("hashchange", route);
  route();
  paper.readOnly = false;
  document.body.classList.add("ready");
  if (document.body.dataset.page === "write") paper.focus({preventScroll: true});
}

start();
