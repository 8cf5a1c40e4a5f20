// Brings what is shown up to date, and tells times as the reader's clock does. All pages work without it.
"use strict";

const EVERY_SECONDS = 3;

function tellTimes(root) {
  for (const time of root.querySelectorAll("time")) {
    time.title = time.dateTime;
    time.textContent = new Date(time.dateTime).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
  }
}

async function bringUpToDate() {
  const shown = document.querySelector("main");
  // Nobody looks, or somebody is about to press what would be replaced.
  if (document.hidden || shown.contains(document.activeElement) || shown.querySelector("details[open]")) return;
  const live = document.getElementById("live");
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (answer.status === 401) return location.reload();
    if (!answer.ok) throw new Error(`it answered ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    tellTimes(fresh);
    if (fresh.innerHTML !== shown.innerHTML) shown.replaceChildren(...fresh.childNodes);
    shown.toggleAttribute("data-live", fresh.hasAttribute("data-live"));
    live.className = "";
    live.textContent = "";
  } catch (error) {
    live.className = "wrong";
    live.textContent = `What is shown may be old: the gateway does not answer (${error.message}). Trying again …`;
  }
}

async function goOn() {
  if (document.querySelector("main[data-live]")) await bringUpToDate();
  setTimeout(goOn, EVERY_SECONDS * 1000);
}

tellTimes(document);
setTimeout(goOn, EVERY_SECONDS * 1000);
