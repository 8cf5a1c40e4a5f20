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

// Somebody copies what is selected, or is about to press what has the focus.
function isInUse(shown) {
  const selection = getSelection();
  const isSelected = !selection.isCollapsed && shown.contains(selection.anchorNode);
  const focused = document.activeElement;
  return isSelected || (shown.contains(focused) && focused.localName !== "summary");
}

// Each of the details in `root` by its summary, and by which one of those with the same summary it is.
function detailsOf(root) {
  const found = new Map();
  for (const details of root.querySelectorAll("details")) {
    const text = details.querySelector("summary").textContent;
    let number = 0;
    while (found.has(`${number} ${text}`)) number += 1;
    found.set(`${number} ${text}`, details);
  }
  return found;
}

function pairsOf(shown, fresh) {
  const before = detailsOf(shown);
  return [...detailsOf(fresh)].filter(([key]) => before.has(key)).map(([key, details]) => [before.get(key), details]);
}

// What was open stays open, at the place to which it was scrolled, and with the focus if it had that.
function replace(shown, fresh) {
  const focused = document.activeElement;
  const kept = pairsOf(shown, fresh).map(([old, details]) => ({
    details,
    hasFocus: old.contains(focused),
    places: [...old.querySelectorAll("pre")].map((pre) => [pre.scrollLeft, pre.scrollTop]),
  }));
  shown.replaceChildren(...fresh.childNodes);
  for (const { details, hasFocus, places } of kept) {
    [...details.querySelectorAll("pre")].slice(0, places.length).forEach((pre, index) => pre.scrollTo(...places[index]));
    if (hasFocus) details.querySelector("summary").focus({ preventScroll: true });
  }
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
  for (const [old, details] of pairsOf(shown, fresh)) details.open = old.open;
  if (fresh.innerHTML !== shown.innerHTML) {
    if (isInUse(shown)) return tell("There is something newer: it is shown once nothing here is selected or focused.");
    replace(shown, fresh);
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
