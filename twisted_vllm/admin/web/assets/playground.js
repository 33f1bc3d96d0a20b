// Chats with a model through the gateway's data path. All text is written as text.
"use strict";

(() => {
  const at = (id) => document.getElementById(id);
  const gateway = console_.url("/ui").replace(/\/ui$/, "");
  const open = at("playground").dataset.open === "true";
  // the conversation, as the model gets it
  let history = [];
  let running = null;

  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // Headers of a request as the chosen key. A ticket lasts minutes, so each request has one of its own.
  async function headers() {
    const found = {"content-type": "application/json"};
    const ticket = await console_.ticket(at("key").value);
    if (ticket && !open) found.authorization = `Bearer ${ticket}`;
    return found;
  }

  // What went wrong, in the words of the gateway or of vLLM.
  async function problemOf(answer) {
    const text = (await answer.text()).slice(0, 2000);
    let said = text;
    try {
      const body = JSON.parse(text);
      said = body.error?.message ?? body.message ?? text;
    } catch {
      // it is the text
    }
    return `${answer.status}: ${said || answer.statusText}`;
  }

  async function loadModels() {
    const select = at("model"), problem = at("model-problem");
    const wanted = select.value || at("playground").dataset.model;
    select.replaceChildren();
    problem.hidden = true;
    try {
      const answer = await fetch(`${gateway}/vllm/v1/models`, {headers: await headers()});
      if (!answer.ok) throw new Error(await problemOf(answer));
      const found = (await answer.json()).data ?? [];
      for (const each of found) {
        const option = element("option", "", each.id);
        option.value = each.id;
        option.selected = each.id === wanted;
        select.append(option);
      }
      if (!found.length) throw new Error("This key may use no model that is served now.");
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  }

  function addMessage(role, text) {
    at("chat-empty").hidden = true;
    const box = element("article", `message ${role}`);
    box.append(element("p", "speaker", role === "user" ? "You" : at("model").value || "The model"));
    const words = element("div", "words", text);
    box.append(words);
    at("chat").append(box);
    at("chat").scrollTop = at("chat").scrollHeight;
    return {box, words};
  }

  // Yields the JSON of each event of a stream.
  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const {done, value} = await reader.read();
      if (done) return;
      left += value;
      const lines = left.split("\n");
      left = lines.pop();
      for (const line of lines) {
        const data = line.startsWith("data:") ? line.slice(5).trim() : "";
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  }

  // One answer on the page: what was written, and its figures.
  class Answer {
    constructor() {
      const {box, words} = addMessage("assistant", "");
      this.box = box;
      this.words = words;
      this.text = "";
      this.begun = performance.now();
      this.first = null;
      this.ended = null;
      this.pieces = 0;
      this.usage = null;
      this.tools = [];
      this.figures = element("dl", "figures");
      this.box.append(this.figures);
      this.box.setAttribute("aria-busy", "true");
    }

    see() {
      this.first ??= performance.now();
      this.pieces += 1;
      const chat = at("chat");
      // whoever reads further up is left there
      if (chat.scrollHeight - chat.scrollTop - chat.clientHeight < 120) chat.scrollTop = chat.scrollHeight;
    }

    write(text) {
      this.text += text;
      this.words.append(text);
      this.see();
    }

    think(text) {
      if (!this.thoughts) {
        const fold = element("details", "thoughts");
        fold.open = true;
        fold.append(element("summary", "", "Reasoning"));
        this.thoughts = element("div", "words");
        fold.append(this.thoughts);
        this.box.insertBefore(fold, this.words);
      }
      this.thoughts.append(text);
      this.see();
    }

    call(parts) {
      for (const part of parts) {
        const index = part.index ?? this.tools.length;
        let tool = this.tools[index];
        if (!tool) {
          tool = this.tools[index] = {name: "", text: "", shown: element("pre", "tool")};
          tool.shown.tabIndex = 0;
          this.box.insertBefore(tool.shown, this.figures);
        }
        tool.name += part.function?.name ?? "";
        tool.text += part.function?.arguments ?? "";
        tool.shown.textContent = `${tool.name}(${tool.text})`;
      }
      this.see();
    }

    take(event) {
      if (event.error) throw new Error(event.error.message ?? "The server reported an error.");
      if (event.usage) this.usage = event.usage;
      const choice = event.choices?.[0];
      const delta = choice?.delta;
      if (delta?.reasoning ?? delta?.reasoning_content) this.think(delta.reasoning ?? delta.reasoning_content);
      if (delta?.content) this.write(delta.content);
      if (delta?.tool_calls) this.call(delta.tool_calls);
      if (choice?.finish_reason && choice.finish_reason !== "stop") this.end = choice.finish_reason;
    }

    figure(name, value, link) {
      const term = element("dt", "", name), text = element("dd", "");
      if (link) {
        const anchor = element("a", "", value);
        anchor.href = link;
        text.append(anchor);
      } else {
        text.textContent = value;
      }
      const pair = element("div");
      pair.append(term, text);
      this.figures.append(pair);
      return text;
    }

    finish(how) {
      this.ended = performance.now();
      this.box.removeAttribute("aria-busy");
      if (how || this.end) this.figure("Ended", how || this.end);
      if (this.first !== null) {
        this.figure("First token", `${Math.round(this.first - this.begun)} ms`);
        const tokens = this.usage?.completion_tokens ?? this.pieces;
        const seconds = (this.ended - this.first) / 1000;
        // the first token took no time of these
        if (tokens > 1 && seconds > 0) {
          this.figure("Tokens/s", `${this.usage ? "" : "about "}${((tokens - 1) / seconds).toFixed(1)}`);
        }
      }
      if (this.usage) this.figure("Tokens", `${this.usage.prompt_tokens} in, ${this.usage.completion_tokens} out`);
    }

    fail(message) {
      const problem = element("p", "problem", message);
      problem.setAttribute("role", "alert");
      this.box.insertBefore(problem, this.figures);
    }
  }

  // The ledger has a row some seconds after the answer.
  async function tellCost(answer, id) {
    answer.figure("Request", id, console_.url(`/ui/requests/${encodeURIComponent(id)}`));
    const shown = answer.figure("Cost", "…");
    for (const seconds of [1, 1, 2, 3, 5, 8]) {
      await new Promise((done) => setTimeout(done, seconds * 1000));
      try {
        const found = await console_.ask(`/ui/playground/answer?request_id=${encodeURIComponent(id)}`, {poll: true});
        if (found) {
          shown.textContent = `$${found.spend.toPrecision(3).replace(/\.?0+$/, "") || "0"}${found.estimated ? " (estimated)" : ""}`;
          if (!answer.usage) answer.figure("Tokens", `${found.prompt_tokens} in, ${found.completion_tokens} out`);
          return;
        }
      } catch {
        break;
      }
    }
    shown.textContent = "not in the ledger";
  }

  function question() {
    const body = {model: at("model").value, messages: [], stream: true, stream_options: {include_usage: true}};
    const system = at("system").value.trim();
    if (system) body.messages.push({role: "system", content: system});
    body.messages.push(...history);
    if (at("temperature").value !== "") body.temperature = Number(at("temperature").value);
    if (at("max-tokens").value !== "") body.max_tokens = Number(at("max-tokens").value);
    return body;
  }

  async function send() {
    const prompt = at("prompt").value.trim();
    if (!prompt || running) return;
    running = new AbortController();
    at("send").disabled = true;
    at("stop").disabled = false;
    at("prompt").value = "";
    history.push({role: "user", content: prompt});
    const asked = addMessage("user", prompt), mine = history;
    const answer = new Answer();
    let id = "", how = "";
    try {
      const credential = await headers();
      answer.begun = performance.now();
      const found = await fetch(`${gateway}/vllm/v1/chat/completions`, {
        method: "POST", headers: credential, body: JSON.stringify(question()), signal: running.signal,
      });
      id = found.headers.get("x-request-id") ?? "";
      if (!found.ok) throw new Error(await problemOf(found));
      for await (const event of events(found.body)) answer.take(event);
    } catch (error) {
      if (error.name === "AbortError") how = "stopped";
      else answer.fail(error.message);
    }
    answer.finish(how);
    if (answer.text) mine.push({role: "assistant", content: answer.text});
    else if (mine.at(-1)?.content === prompt) {
      // it was not answered: it can be sent again
      mine.pop();
      asked.box.classList.add("unanswered");
      if (!how && !at("prompt").value && !answer.tools.length && !answer.thoughts) at("prompt").value = prompt;
    }
    running = null;
    at("send").disabled = false;
    at("stop").disabled = true;
    if (id) tellCost(answer, id);
    at("prompt").focus();
  }

  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send();
    }
  });
  at("stop").addEventListener("click", () => running?.abort());
  at("clear").addEventListener("click", () => {
    running?.abort();
    history = [];
    at("chat").replaceChildren(at("chat-empty"));
    at("chat-empty").hidden = false;
    at("prompt").focus();
  });
  // the list of keys is replaced when one is searched
  document.addEventListener("change", (event) => {
    if (event.target.id === "key") loadModels();
  });
  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.detail.target?.id === "key" || event.detail.elt?.id === "key") loadModels();
  });
  loadModels();
})();
