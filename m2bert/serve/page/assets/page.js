// The search page without reloads, and keys on strips. Without this file every link and form works as it is.
"use strict";

const form = document.getElementById("search");
const results = document.getElementById("results");
const status = document.getElementById("status");
const SLOW = 150; // milliseconds until it is worth saying that something is going on
let running = null;

function say(words) {
  status.textContent = words;
}

// The server renders results, escaped, for this script as for a page without it.
function show(html, address) {
  results.replaceChildren(...new DOMParser().parseFromString(html, "text/html").body.childNodes);
  say(results.querySelector("[data-status]").dataset.status);
  prepareStrips(results);
  const query = new URL(address, location.href).searchParams.get("q");
  document.title = query ? `${query} · m2bert` : "m2bert";
}

function failed(address) {
  const box = document.createElement("div");
  box.className = "notice error";
  box.setAttribute("role", "alert");
  const title = document.createElement("h2");
  title.textContent = "The server does not answer";
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = "Try again";
  again.addEventListener("click", () => load(address));
  box.append(title, again);
  results.replaceChildren(box);
  say("");
}

async function load(address) {
  running?.abort();
  const mine = (running = new AbortController());
  const slow = setTimeout(() => {
    results.setAttribute("aria-busy", "true");
    say("Searching …");
  }, SLOW);
  try {
    const url = new URL(address, location.href);
    url.searchParams.set("part", "results");
    const answer = await fetch(url, { signal: mine.signal });
    show(await answer.text(), address);
  } catch (error) {
    if (error.name === "AbortError") return;
    failed(address);
  } finally {
    clearTimeout(slow);
    if (running === mine) results.setAttribute("aria-busy", "false");
  }
}

function search() {
  if (!form.reportValidity()) return;
  const address = "./?" + new URLSearchParams(new FormData(form));
  history.pushState(null, "", address);
  form.querySelector("h1").classList.add("quiet");
  load(address);
}

// One stop of the Tab key a strip: the arrow keys move on it.
function prepareStrips(root) {
  for (const strip of root.querySelectorAll(".strip")) {
    const peaks = [...strip.querySelectorAll(".peak")];
    const open = peaks.find((peak) => location.hash && peak.getAttribute("href") === location.hash);
    const stop = open ?? peaks.find((peak) => peak.dataset.passage === "1") ?? peaks[0];
    for (const peak of peaks) peak.setAttribute("tabindex", peak === stop ? "0" : "-1");
  }
}

function peakBeside(peak, key) {
  const peaks = [...peak.closest(".strip").querySelectorAll(".peak")];
  const here = peaks.indexOf(peak);
  const places = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: peaks.length - 1 };
  return key in places ? peaks[Math.min(Math.max(places[key], 0), peaks.length - 1)] : null;
}

// The passage of a peak is shown at full height below the strip, or scrolled to in its document.
function follow(peak) {
  const passages = peak.closest(".result")?.querySelectorAll(".quotes > li") ?? [];
  for (const passage of passages) passage.classList.toggle("current", passage.dataset.passage === peak.dataset.passage);
  for (const other of peak.closest(".strip").querySelectorAll(".peak")) other.setAttribute("tabindex", other === peak ? "0" : "-1");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const peak = event.target.closest?.(".peak");
  if (peak) {
    const next = peakBeside(peak, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
    const address = next.getAttribute("href");
    if (next !== peak && address.startsWith("#")) location.replace(address);
    next.focus();
  } else if (event.key === "/" && !event.target.closest("input, select, textarea")) {
    const field = document.getElementById("q");
    if (!field) return;
    event.preventDefault();
    field.select();
    field.focus();
  }
});

document.addEventListener("focusin", (event) => {
  const peak = event.target.closest?.(".peak");
  if (peak) follow(peak);
});

document.addEventListener("pointerover", (event) => {
  const peak = event.target.closest?.(".result .peak");
  if (peak) follow(peak);
});

prepareStrips(document);
if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  form.addEventListener("change", (event) => {
    if (event.target.name === "store") form.submit(); // other stores have other sources
    else if (event.target.tagName === "SELECT" && form.elements.q.value.trim()) search();
  });
  window.addEventListener("popstate", () => location.reload());
}
