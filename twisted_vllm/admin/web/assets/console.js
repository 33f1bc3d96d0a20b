// What every page of the console does. Text is written with textContent only.
"use strict";

const console_ = (() => {
  const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

  // The address of a page of the console, also behind a proxy that cuts off a prefix.
  const url = (path) => meta("base") + path.replace(/^\/ui/, "");

  const headers = () => ({"x-anti-forgery": meta("anti-forgery"), accept: "application/json"});

  // Asks a page of ours for JSON. Throws an Error with the gateway's message.
  async function ask(path, {form, poll = false, signal} = {}) {
    const options = {headers: headers(), signal};
    if (poll) options.headers["x-console-poll"] = "1";
    if (form) {
      options.method = "POST";
      options.body = new URLSearchParams(form);
    }
    const answer = await fetch(url(path), options);
    if (answer.status === 401) {
      location.assign(url("/ui/sign-in?next=" + encodeURIComponent(location.pathname + location.search)));
      throw new Error("Sign in first.");
    }
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(body?.error?.message ?? `The gateway answered ${answer.status}.`);
    return body;
  }

  // A credential for vLLM's routes: the session's own, or that of one of the caller's keys (its hash).
  async function ticket(key = "") {
    const found = await ask("/ui/ticket", {form: {key}});
    return found.ticket;
  }

  // Server-sent events of JSON; returns a function that ends them. They rest while nobody sees the page.
  function events(path, onMessage, onState = () => {}) {
    let source = null;
    const open = () => {
      if (source || document.hidden) return;
      source = new EventSource(url(path));
      source.onopen = () => onState("open");
      source.onmessage = (event) => onMessage(JSON.parse(event.data));
      source.onerror = () => {
        onState("broken");
        if (source && source.readyState === EventSource.CLOSED) {
          source = null;
          setTimeout(open, 5000);
        }
      };
    };
    const close = () => {
      source?.close();
      source = null;
    };
    const look = () => (document.hidden ? close() : open());
    document.addEventListener("visibilitychange", look);
    open();
    return () => {
      document.removeEventListener("visibilitychange", look);
      close();
    };
  }

  // Tells something to all, also to those who do not see it.
  function notice(text, kind = "done") {
    const line = document.createElement("p");
    line.className = kind;
    line.textContent = text;
    document.getElementById("notices").append(line);
    setTimeout(() => line.remove(), 6000);
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // without TLS a browser has no clipboard: the old way
      const area = document.createElement("textarea");
      area.value = text;
      area.setAttribute("aria-label", "Text to copy");
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    notice("Copied.");
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button, a");
    if (!button) return;
    if (button.dataset.copy) copy(document.querySelector(button.dataset.copy).textContent);
    if (button.dataset.opens) document.querySelector(button.dataset.opens).showModal();
    if ("closes" in button.dataset) button.closest("dialog").close();
    if (button.dataset.toggle) {
      const shown = document.getElementById(button.dataset.toggle).classList.toggle("shown");
      button.setAttribute("aria-expanded", String(shown));
    }
    if ("themeToggle" in button.dataset) {
      const dark = matchMedia("(prefers-color-scheme: dark)").matches;
      const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
      const next = now === "dark" ? "light" : "dark";
      document.documentElement.dataset.theme = next;
      try {
        localStorage.setItem("theme", next);
      } catch {
        // it lasts until the page is left
      }
      document.dispatchEvent(new CustomEvent("themechange"));
    }
  });

  // htmx: what asks by itself rests while nobody sees the page
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.detail.requestConfig.headers["x-console-poll"]) event.preventDefault();
  });

  // htmx: a part of a page that could not be had
  document.addEventListener("htmx:sendError", () => notice("The gateway does not answer.", "problem"));

  return {ask, copy, events, notice, ticket, url};
})();
