"use strict";
// The chat page: conversations live in the browser's own storage, answers come from the server that sent this page.

const STORE = "inference-chat";
const SETTINGS = ["system", "models", "temperature", "top_p", "max_tokens", "seed"];
const $ = (id) => document.getElementById(id);
let state = load();
let running = null; // the AbortController of the answer under way

function load() {
  try {
    const saved = JSON.parse(localStorage.getItem(STORE));
    if (saved && Array.isArray(saved.chats) && saved.chats.length) return saved;
  } catch { /* damaged or forbidden: begin anew */ }
  return { chats: [newChat()], current: 0, settings: {} };
}

function newChat() {
  return { title: "New chat", messages: [] };
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch { /* full or forbidden: the page works on, it only forgets */ }
}

const chat = () => state.chats[state.current];

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function showText(target, text) {
  // Text between ``` fences is code; all else stays as it is.
  target.replaceChildren();
  text.split("```").forEach((part, index) => {
    if (index % 2 === 0) target.append(part);
    else target.append(element("pre", "", part.replace(/^[\w+-]*\n/, "")));
  });
}

function messageElement(message) {
  const made = element("div", `message ${message.role}`);
  if (message.reasoning) made.append(element("div", "thinking", message.reasoning));
  const body = element("div", "body");
  showText(body, message.content);
  made.append(body);
  if (message.error) made.append(element("div", "error", message.error));
  if (message.note) made.append(element("div", "note", message.note));
  return made;
}

function show() {
  const messages = $("messages");
  messages.replaceChildren(...chat().messages.map(messageElement));
  if (!chat().messages.length) messages.append(element("p", "empty", "Ask something."));
  messages.scrollTop = messages.scrollHeight;
  $("list").replaceChildren(...state.chats.map((item, index) => {
    const row = element("li");
    const title = element("button", `title${index === state.current ? " current" : ""}`, item.title);
    title.type = "button";
    title.onclick = () => { stop(); state.current = index; closeMenu(); save(); show(); };
    const remove = element("button", "remove", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Delete ${item.title}`);
    remove.onclick = () => {
      stop();
      state.chats.splice(index, 1);
      if (!state.chats.length) state.chats.push(newChat());
      state.current = Math.min(state.current > index ? state.current - 1 : state.current, state.chats.length - 1);
      save();
      show();
    };
    row.append(title, remove);
    return row;
  }));
}

function headers() {
  const found = { "Content-Type": "application/json" };
  // The key is kept for this tab alone.
  const key = sessionStorage.getItem("key");
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

function requestBody() {
  const body = { stream: true, stream_options: { include_usage: true }, messages: [] };
  if ($("system").value.trim()) body.messages.push({ role: "system", content: $("system").value });
  for (const message of chat().messages) {
    if (message.content || message.role === "user") body.messages.push({ role: message.role, content: message.content });
  }
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  if ($("models").value) body.model = $("models").value;
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function errorOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `status ${response.status}`;
  }
}

async function ask(text) {
  const own = chat();
  if (!own.messages.length) own.title = text.slice(0, 60);
  own.messages.push({ role: "user", content: text });
  const body = requestBody();
  const answer = { role: "assistant", content: "", reasoning: "" };
  own.messages.push(answer);
  save();
  show();
  running = new AbortController();
  toggle(true);
  const started = performance.now();
  const shown = () => $("messages").lastElementChild;
  let first = 0, usage = null, cut = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) throw new Error(await errorOf(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      const choice = event.choices[0];
      if (!choice) continue;
      const change = choice.delta;
      if (!first && (change.content || change.reasoning_content)) first = performance.now();
      answer.content += change.content || "";
      answer.reasoning += change.reasoning_content || "";
      cut = choice.finish_reason === "length" ? "; cut off at the token limit" : cut;
      if (own === chat()) paint(shown(), answer);
    }
    if (usage) {
      const seconds = (performance.now() - started) / 1000;
      const rate = usage.completion_tokens / seconds;
      const wait = ((first - started) / 1000).toFixed(2);
      answer.note = `${usage.completion_tokens} tokens, ${rate.toFixed(1)} a second, first after ${wait} s${cut}`;
    }
  } catch (error) {
    if (error.name === "AbortError") answer.note = "stopped";
    else answer.error = error.message;
  }
  running = null;
  toggle(false);
  save();
  show();
}

function paint(target, answer) {
  const messages = $("messages");
  const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 60;
  target.replaceWith(messageElement(answer));
  if (atEnd) messages.scrollTop = messages.scrollHeight;
}

function toggle(isRunning) {
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
}

function stop() {
  if (running) running.abort();
}

function closeMenu() {
  $("side").classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
}

async function showModels() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await errorOf(response));
    const names = (await response.json()).data.map((card) => card.id);
    $("models").replaceChildren(...names.map((name) => new Option(name, name)));
    $("models").value = names.includes(state.settings.models) ? state.settings.models : names[0];
    $("model").textContent = $("models").value;
  } catch (error) {
    $("model").textContent = error.message;
  }
}

function begin() {
  for (const name of SETTINGS) {
    if (state.settings[name] !== undefined) $(name).value = state.settings[name];
    $(name).addEventListener("change", () => {
      state.settings[name] = $(name).value;
      if (name === "models") $("model").textContent = $(name).value;
      save();
    });
  }
  $("key").value = sessionStorage.getItem("key") || "";
  $("key").addEventListener("change", () => { sessionStorage.setItem("key", $("key").value); showModels(); });
  $("new").onclick = () => {
    stop();
    if (chat().messages.length) { state.chats.unshift(newChat()); state.current = 0; }
    closeMenu();
    save();
    show();
    $("input").focus();
  };
  $("menu").onclick = () => {
    const open = $("side").classList.toggle("open");
    $("menu").setAttribute("aria-expanded", String(open));
  };
  $("open-settings").onclick = () => {
    $("settings").hidden = !$("settings").hidden;
    $("open-settings").setAttribute("aria-expanded", String(!$("settings").hidden));
  };
  $("settings").onsubmit = (event) => event.preventDefault();
  $("stop").onclick = stop;
  $("composer").onsubmit = (event) => {
    event.preventDefault();
    const text = $("input").value.trim();
    if (!text || running) return;
    $("input").value = "";
    $("input").rows = 1;
    ask(text);
  };
  $("input").addEventListener("input", () => { $("input").rows = Math.min($("input").value.split("\n").length, 8); });
  $("input").addEventListener("keydown", (event) => {
    // Enter sends; Shift+Enter, and the Enter that ends a composed character, do not.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("composer").requestSubmit();
    }
  });
  showModels();
  show();
}

begin();
