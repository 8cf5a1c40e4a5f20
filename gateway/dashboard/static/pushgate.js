// Refreshes the page and its relative times, and adds copy buttons. All pages work without this script.
"use strict";

const EVERY_SECONDS = 3;
const TIMEOUT_SECONDS = 10;
const MINUTE = 60, HOUR = 3600, DAY = 86400;
const COPIED_SECONDS = 2;

// The clock of this machine may be wrong: times are relative to the gateway's clock.
const AHEAD = Date.now() - Date.parse(document.body.dataset.now);

// The rules of gateway/text/relative.py. Times are in milliseconds since 1970.
function relative(instant, now) {
  const seconds = (now - instant) / 1000;
  if (seconds >= -5 && seconds < MINUTE) return "just now";
  if (seconds > -MINUTE && seconds < 0) return "in a moment";
  const distance = Math.abs(seconds);
  if (distance >= 31 * DAY) return new Date(instant).toISOString().slice(0, 10);
  const [size, unit] = [[DAY, "d"], [HOUR, "h"], [MINUTE, "min"]].find(([size]) => distance >= size);
  const count = `${Math.floor(distance / size)} ${unit}`;
  return seconds > 0 ? `${count} ago` : `in ${count}`;
}

function refreshTimes(root) {
  for (const time of root.querySelectorAll("time")) {
    const text = relative(Date.parse(time.dateTime), Date.now() - AHEAD);
    if (time.textContent !== text) time.textContent = text;
  }
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied";
  }
  setTimeout(() => { button.textContent = "Copy"; }, COPIED_SECONDS * 1000);
}

// Browsers offer the clipboard only over HTTPS and on this machine.
function addCopyButtons(root) {
  if (!navigator.clipboard) return;
  for (const element of root.querySelectorAll(".code, .copyable")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    element.append(button);
  }
}

function enhance(root) {
  refreshTimes(root);
  addCopyButtons(root);
}

// A refresh would disturb a reader who has selected text, or focused a button.
function isInUse(shown) {
  const selection = getSelection();
  const isSelected = !selection.isCollapsed && shown.contains(selection.anchorNode);
  const focused = document.activeElement;
  return isSelected || (shown.contains(focused) && focused.localName !== "summary");
}

// The details elements in `root`, by their summary and their number among those with an equal summary.
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

// Replace the content. Open details stay open, and keep their scroll positions and the focus.
function replace(shown, fresh) {
  const focused = document.activeElement;
  const kept = pairsOf(shown, fresh).map(([old, details]) => ({
    details,
    hasFocus: old.contains(focused),
    places: [...old.querySelectorAll("pre")].map((pre) => [pre.scrollLeft, pre.scrollTop]),
  }));
  // What somebody has typed there stays.
  const form = shown.querySelector("form.filters");
  if (form) fresh.querySelector("form.filters")?.replaceWith(form);
  shown.replaceChildren(...fresh.childNodes);
  for (const { details, hasFocus, places } of kept) {
    [...details.querySelectorAll("pre")].slice(0, places.length).forEach((pre, index) => pre.scrollTo(...places[index]));
    if (hasFocus) details.querySelector("summary").focus({ preventScroll: true });
  }
}

function announce(text) {
  const live = document.getElementById("live");
  if (live.textContent !== text) live.textContent = text;
}

async function refresh(shown) {
  let answer, text;
  try {
    answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_SECONDS * 1000) });
    text = await answer.text();
  } catch {
    return announce("This page may be outdated: the gateway does not answer. Retrying …");
  }
  if (answer.status === 401) return announce("This page may be outdated: you are signed out. Reload the page to sign in.");
  const fresh = new DOMParser().parseFromString(text, "text/html").querySelector("main");
  if (!answer.ok || !fresh) return announce(`This page may be outdated: the gateway answered ${answer.status}. Retrying …`);
  enhance(fresh);
  refreshTimes(shown);
  for (const [old, details] of pairsOf(shown, fresh)) details.open = old.open;
  if (fresh.innerHTML !== shown.innerHTML) {
    if (isInUse(shown)) return announce("Newer content is available: it appears when nothing here is selected or focused.");
    replace(shown, fresh);
  }
  shown.toggleAttribute("data-live", fresh.hasAttribute("data-live"));
  announce("");
}

async function poll() {
  const shown = document.querySelector("main[data-live]");
  if (shown && !document.hidden) await refresh(shown);
  setTimeout(poll, EVERY_SECONDS * 1000);
}

document.addEventListener("click", ({ target }) => {
  if (target.matches("button.copy")) copyText(target, target.parentElement.querySelector("pre, code").textContent);
});
enhance(document);
// On a phone the sections are a row that scrolls.
const section = document.querySelector(".sections [aria-current]");
if (section) section.closest("nav").scrollLeft = section.offsetLeft - 16;
setInterval(() => refreshTimes(document), EVERY_SECONDS * 1000);
setTimeout(poll, EVERY_SECONDS * 1000);
