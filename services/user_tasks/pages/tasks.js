"use strict";
// My tasks, live. Everything that comes from a task is written as text, never as markup.

const API = "/api/tasks/v1";
const FINAL = new Set(["Succeeded", "Failed", "Canceled"]);
const $ = (id) => document.getElementById(id);
const tasks = new Map();
const rows = new Map();
// Longer than three signs of life of the server.
const SILENCE = 50000, AT_ONCE = 8;
const unsure = new Set();
let token = null, next = null, filter = "all", lastId = null, stopping = null, pause = 1000;
let asking = null, heard = 0, resume = null;

function start() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  token = sessionStorage.getItem("token");
  $("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    token = $("token").value.trim();
    sessionStorage.setItem("token", token);
    $("token").value = "";
    enter();
  });
  $("leave").addEventListener("click", leave);
  $("more").addEventListener("click", () => load(next).catch(failed));
  for (const button of $("filters").children) {
    button.addEventListener("click", () => choose(button.dataset.filter));
  }
  setInterval(tick, 1000);
  window.addEventListener("online", () => { if (resume) resume(); });
  if (token) enter(); else leave();
}

function leave() {
  if (stopping) stopping.abort();
  sessionStorage.removeItem("token");
  token = null; lastId = null; next = null;
  forget();
  for (const id of ["filters", "leave", "more", "empty"]) $(id).hidden = true;
  $("connection").textContent = "";
  $("enter").hidden = false;
  $("token").focus();
}

function forget() {
  tasks.clear(); rows.clear(); unsure.clear();
  $("tasks").replaceChildren();
}

async function enter() {
  $("enter").hidden = true; $("problem").hidden = true;
  $("filters").hidden = false; $("leave").hidden = false;
  try {
    await load(null);
  } catch (error) {
    failed(error);
    return;
  }
  follow();
}

function failed(error) {
  $("problem").textContent = error.status === 401
    ? "This access token is not valid any more. Please enter another one."
    : `The tasks could not be read: ${error.message}`;
  $("problem").hidden = false;
  if (error.status === 401) leave();
}

async function call(path, options = {}) {
  const answer = await fetch(path, {
    ...options,
    headers: { Authorization: `JWT ${token}`, Accept: "application/json", ...options.headers },
  });
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    const error = new Error(body.detail || `${answer.status} ${answer.statusText}`);
    error.status = answer.status;
    throw error;
  }
  return answer;
}

async function load(after) {
  const query = after ? `?limit=50&after=${encodeURIComponent(after)}` : "?limit=50";
  const page = await (await call(`${API}/tasks/${query}`)).json();
  for (const task of page.results) put(task);
  next = page.next;
  $("more").hidden = !next;
  show();
}

async function refresh(id) {
  try {
    put(await (await call(`${API}/tasks/${id}/`)).json());
    show();
  } catch (error) {
    if (error.status === 404) { remove(id); show(); } else throw error;
  }
}

// What an event does not carry is asked for: of many tasks at once with one request.
function ask(id) {
  unsure.add(id);
  asking = asking || setTimeout(async () => {
    const ids = [...unsure];
    unsure.clear(); asking = null;
    try {
      if (ids.length > AT_ONCE) await load(null);
      else await Promise.all(ids.map(refresh));
    } catch (error) {
      if (error.status === 401) failed(error);
    }
  }, 150);
}

function put(task) {
  task.seen = Date.now();
  tasks.set(task.uuid, task);
}

function remove(id) {
  tasks.delete(id);
  const row = rows.get(id);
  if (row) row.remove();
  rows.delete(id);
}

// The live stream. EventSource cannot send the token, so the same format is read by hand.
async function follow() {
  while (token) {
    stopping = new AbortController();
    try {
      const headers = { Accept: "text/event-stream" };
      if (lastId !== null) headers["Last-Event-ID"] = lastId;
      const answer = await call(`${API}/events/`, { headers, signal: stopping.signal });
      $("connection").textContent = "Live";
      if (lastId === null) await load(null);
      pause = 1000;
      await read(answer.body.getReader());
    } catch (error) {
      if (!token || error.status === 401) { if (token) failed(error); return; }
    }
    if (!token) return;
    $("connection").textContent = navigator.onLine ? "Connecting again …" : "No network";
    await new Promise((done) => { resume = done; setTimeout(done, pause); });
    resume = null;
    pause = Math.min(pause * 2, 30000);
  }
}

async function read(reader) {
  const decoder = new TextDecoder();
  let text = "";
  heard = Date.now();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard = Date.now();
    text += decoder.decode(value, { stream: true });
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      take(text.slice(0, end));
      text = text.slice(end + 2);
    }
  }
}

function take(block) {
  const event = {};
  for (const line of block.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) event[line.slice(0, at)] = line.slice(at + 2);
  }
  if (event.id) lastId = event.id;
  if (!event.event) return;
  const data = JSON.parse(event.data);
  if (event.event === "reset") {
    forget();
    for (const task of data.tasks) put(task);
    show();
    return;
  }
  if (event.event === "task.deleted") { remove(data.task); show(); return; }
  const known = tasks.get(data.task);
  if (!known && event.event !== "task.created" || event.event === "task.artifact") {
    ask(data.task);
    return;
  }
  const task = known || { uuid: data.task, root: data.root, artifacts: [] };
  for (const name of ["name", "stage", "rate", "eta_seconds", "completed_steps", "total_steps",
    "attempts", "error", "parent", "is_container", "created", "started_at", "finished_at"]) {
    task[name] = data[name];
  }
  task.base_state = data.state;
  task.state = data.state === "In Progress" && data.stage ? data.stage : data.state;
  put(task);
  if (event.event === "task.finished") {
    $("news").textContent = `${data.name || "Task"}: ${data.state}`;
    ask(data.task);
  }
  // A bar that moves is drawn alone; a task that comes or changes its list needs all of them.
  if (event.event === "task.progress" || event.event === "task.stage") draw(task); else show();
}

function choose(name) {
  filter = name;
  for (const button of $("filters").children) {
    button.setAttribute("aria-pressed", String(button.dataset.filter === name));
  }
  show();
}

function wanted(task) {
  return filter === "all" || (filter === "ended") === FINAL.has(task.base_state);
}

// Newest first; what a container holds stands below it, in the order in which it was made.
function ordered() {
  const tops = [], inside = new Map();
  for (const task of tasks.values()) {
    if (task.parent && tasks.has(task.parent)) {
      if (!inside.has(task.parent)) inside.set(task.parent, []);
      inside.get(task.parent).push(task);
    } else tops.push(task);
  }
  const byAge = (a, b) => (a.created < b.created ? -1 : a.created > b.created ? 1
    : a.uuid < b.uuid ? -1 : 1);
  tops.sort(byAge).reverse();
  const found = [];
  const visit = (task, depth) => {
    task.depth = depth;
    found.push(task);
    for (const child of (inside.get(task.uuid) || []).sort(byAge)) visit(child, depth + 1);
  };
  for (const task of tops) visit(task, 0);
  return found;
}

function show() {
  const shown = ordered().filter(wanted);
  $("empty").hidden = shown.length > 0;
  const elements = shown.map((task) => draw(task));
  const list = $("tasks");
  elements.forEach((element, place) => {
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] || null);
  });
  while (list.children.length > elements.length) list.lastChild.remove();
}

function draw(task) {
  let row = rows.get(task.uuid);
  if (!row) {
    row = $("task").content.firstElementChild.cloneNode(true);
    row.dataset.task = task.uuid;
    row.querySelector(".cancel").addEventListener("click", (event) => {
      cancel(task.uuid, event.currentTarget);
    });
    rows.set(task.uuid, row);
  }
  const ended = FINAL.has(task.base_state);
  row.classList.toggle("inner", task.depth > 0);
  row.querySelector("h2").textContent = task.name || "Task";
  const state = row.querySelector(".state");
  state.textContent = task.state;
  state.dataset.state = task.base_state;
  const bar = row.querySelector("progress");
  const done = task.base_state === "Succeeded" || !task.total_steps
    ? Number(ended) : task.completed_steps / task.total_steps;
  if (task.base_state === "In Progress" && task.total_steps <= 1) bar.removeAttribute("value");
  else bar.value = done;
  bar.setAttribute("aria-label", `${task.name}: ${task.state}`);
  row.querySelector(".detail").textContent = detail(task, ended);
  const error = row.querySelector(".error");
  error.textContent = task.error ? task.error.message || "" : "";
  error.hidden = !error.textContent || task.base_state !== "Failed";
  results(row.querySelector(".artifacts"), task.artifacts || []);
  row.querySelector(".cancel").hidden = ended;
  return row;
}

function detail(task, ended) {
  const parts = [];
  if (task.total_steps > 1) parts.push(`${task.completed_steps} of ${task.total_steps}`);
  if (task.attempts > 1) parts.push(`attempt ${task.attempts}`);
  if (ended && task.finished_at) {
    parts.push(new Date(task.finished_at).toLocaleString());
    if (task.started_at) {
      parts.push(`took ${span((new Date(task.finished_at) - new Date(task.started_at)) / 1000)}`);
    }
  } else if (task.base_state === "Pending") parts.push("waiting for its turn");
  else if (task.eta_seconds !== null && task.eta_seconds !== undefined) {
    const left = Math.max(0, task.eta_seconds - (Date.now() - task.seen) / 1000);
    parts.push(left < 1 ? "nearly done" : `about ${span(left)} left`);
  }
  return parts.join(" · ");
}

function span(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function results(list, artifacts) {
  const shown = artifacts.filter((one) => one.name !== "Error");
  list.hidden = shown.length === 0;
  list.replaceChildren(...shown.map((one) => {
    const item = document.createElement("li");
    const address = one.file || (/^https?:\/\//.test(one.url) ? one.url : "");
    if (address) {
      const link = document.createElement("a");
      link.href = address;
      link.rel = "noopener noreferrer";
      link.textContent = one.file_name || one.name;
      item.append(link);
      if (one.size) item.append(` (${size(one.size)})`);
    } else {
      const text = document.createElement("pre");
      text.textContent = one.text || one.url;
      item.append(one.name, text);
    }
    return item;
  }));
}

function size(bytes) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
}

async function cancel(id, button) {
  button.disabled = true;
  try {
    await call(`/api/tasks/v0/tasks/${id}/cancel/`, { method: "POST" });
    await refresh(id);
  } catch (error) {
    failed(error);
  } finally {
    button.disabled = false;
  }
}

function tick() {
  // A connection that a phone lost in a tunnel says nothing and does not end either.
  if (heard && Date.now() - heard > SILENCE && stopping) { heard = 0; stopping.abort(); }
  for (const task of tasks.values()) {
    const row = rows.get(task.uuid);
    if (row && !FINAL.has(task.base_state)) {
      row.querySelector(".detail").textContent = detail(task, false);
    }
  }
}

start();
