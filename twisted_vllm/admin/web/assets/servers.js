// Keeps the figures of servers current, and has servers do what an operator confirms.
"use strict";

(() => {
  const state = document.getElementById("live-state");
  const table = document.getElementById("servers");

  function show(servers) {
    const found = new Map(servers.map((each) => [each.server, each]));
    for (const part of document.querySelectorAll("[data-server]")) {
      const server = found.get(part.dataset.server);
      if (!server) continue;
      for (const place of part.querySelectorAll("[data-field]")) {
        const text = server.fields[place.dataset.field] ?? "";
        if (place.textContent !== text) place.textContent = text;
        if ("kind" in place.dataset) place.className = `badge ${server.kind}`;
      }
    }
    if (table && "whole" in table.dataset) {
      const rows = table.querySelectorAll("tbody tr[data-server]");
      const same = rows.length === found.size && [...rows].every((row) => found.has(row.dataset.server));
      document.getElementById("changed").classList.toggle("hidden", same);
    }
  }

  if (state) {
    const usual = state.textContent;
    console_.events("/ui/servers/events", show, (now) => {
      const text = now === "open" ? usual : "The gateway does not answer: these figures are old.";
      if (state.textContent !== text) state.textContent = text;
    });
  }

  // The data path's address, beside the console's.
  const address = (path) => console_.url("/ui").replace(/\/ui$/, "") + path;

  const explanations = {
    403: "the key may not do this",
    404: "the server does not have this act (development mode, or runtime updates of adapters, are off)",
  };

  async function actOn(server, path, body, ticket) {
    const headers = {"x-vllm-passthrough-server": server};
    if (ticket) headers.authorization = `Bearer ${ticket}`;
    if (body) headers["content-type"] = "application/json";
    try {
      const answer = await fetch(address(path), {method: "POST", headers, body});
      const text = (await answer.text()).trim().slice(0, 300);
      if (answer.ok) return [true, `done (${answer.status})`];
      return [false, `not done: ${answer.status}, ${explanations[answer.status] ?? text}`];
    } catch {
      return [false, "not known: the gateway gave no answer"];
    }
  }

  async function act(form) {
    const results = form.closest("dialog").querySelector("[data-results]");
    const chosen = form.querySelectorAll("input[type=hidden][name=server], [name=server]:checked");
    const servers = [...chosen].map((each) => each.value);
    const add = (text, kind) => {
      const line = document.createElement("li");
      line.textContent = text;
      if (kind) line.className = kind;
      results.append(line);
      return line;
    };
    results.replaceChildren();
    if (!servers.length) {
      add("Choose at least one server.", "problem");
      return;
    }
    const query = new URLSearchParams([...form.querySelectorAll("[data-query]")].map((each) => [each.name, each.value]));
    const fields = [...form.querySelectorAll("[data-body]")].map((each) => [each.name, each.value]);
    const body = fields.length ? JSON.stringify(Object.fromEntries(fields)) : undefined;
    const path = form.dataset.act + (query.size ? `?${query}` : "");
    const button = form.querySelector("button.main");
    button.disabled = true;
    try {
      const ticket = await console_.ticket();
      await Promise.all(
        servers.map(async (server) => {
          const line = add(`${server}: …`);
          const [done, text] = await actOn(server, path, body, ticket);
          line.textContent = `${server}: ${text}`;
          line.className = done ? "done" : "problem";
        }),
      );
    } catch (error) {
      add(error.message, "problem");
    } finally {
      button.disabled = false;
    }
  }

  for (const form of document.querySelectorAll("form[data-act]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      act(form);
    });
  }
})();
