// Brings what is shown up to date, and tells times as the reader's clock does. All pages work without it.
"use strict";

const EVERY_SECONDS = 3;
const PATIENCE_SECONDS = 10;

function tellTimes(root) {
  for (const time of root.querySelectorAll("time")) {
    time.title = time.dateTime;
    time.textContent = new Date(time.dateTime).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
  }
}

// Somebody reads what is open, copies what is selected, or is about to press what has the focus.
function isInUse(shown) {
  const selection = getSelection();
  const isSelected = !selection.isCollapsed && shown.contains(selection.anchorNode);
  return isSelected || shown.contains(document.activeElement) || shown.querySelector("details[open]") !== null;
}

function tell(text) {
  const live = document.getElementById("live");
  if (live.textContent !== text) live.textContent = text;
}

async function bringUpToDate(shown) {
  let answer, text;
  try {
    answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_SECONDS * 1000) });
    text = await answer.text();
  } catch {
    return tell("What is shown may be old: the gateway does not answer. Trying again …");
  }
  if (answer.status === 401) return tell("What is shown may be old: you have signed out. Load the page again to sign in.");
  const fresh = new DOMParser().parseFromString(text, "text/html").querySelector("main");
  if (!answer.ok || !fresh) return tell(`What is shown may be old: the gateway answered ${answer.status}. Trying again …`);
  tellTimes(fresh);
  if (fresh.innerHTML !== shown.innerHTML) {
    if (isInUse(shown)) return tell("There is something newer: it is shown once nothing here is open, selected or focused.");
    shown.replaceChildren(...fresh.childNodes);
  }
  shown.toggleAttribute("data-live", fresh.hasAttribute("data-live"));
  tell("");
}

async function goOn() {
  const shown = document.querySelector("main[data-live]");
  if (shown && !document.hidden) await bringUpToDate(shown);
  setTimeout(goOn, EVERY_SECONDS * 1000);
}

tellTimes(document);
setTimeout(goOn, EVERY_SECONDS * 1000);
