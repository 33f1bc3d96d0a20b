// The requests in flight: a table that changes in place. Text is written with textContent only.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const live = byId("live"), form = byId("live-filters"), dialog = byId("live-cut");
  const defaults = {sort: form.dataset.defaultSort, limit: form.dataset.defaultLimit};
  const mayCut = "mayCut" in live.dataset;
  const body = byId("live-table").tBodies[0];
  const states = new Map([...form.elements.state.options].map((each) => [each.value, each.textContent]));
  const badges = {queued: "warn", waiting: "warn", streaming: "good", paused: "bad"};
  // the lists of counts are short: what is beyond is told together
  const COUNTED = 8;
  let stop = null, paused = false;

  const numbers = new Intl.NumberFormat("en");
  const number = (value) => (value == null ? "–" : numbers.format(value));

  function seconds(value) {
    if (value == null) return "–";
    if (value < 1) return `${Math.round(value * 1000)} ms`;
    if (value < 60) return `${value.toFixed(1)} s`;
    if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
    return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  }

  function size(value) {
    for (const [name, unit] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
      if (value >= unit) return `${(value / unit).toPrecision(3)} ${name}`;
    }
    return `${value} B`;
  }

  // Writes only what has changed: nothing flickers, and a selection stays.
  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function element(name, classes = "", text = "") {
    const made = document.createElement(name);
    if (classes) made.className = classes;
    if (text) made.textContent = text;
    return made;
  }

  // Returns which child of a list must stay where it is: the one with the focus, or with the selected text.
  function held(list) {
    const selection = document.getSelection();
    const nodes = [document.activeElement, selection.isCollapsed ? null : selection.anchorNode];
    return [...list.children].find((each) => nodes.some((node) => node && each.contains(node)));
  }

  // Makes the children of a list those of `wanted`, in this order; no other is touched, and the held one not moved.
  function arrange(list, wanted) {
    const kept = new Set(wanted), anchor = held(list);
    for (const each of [...list.children]) if (!kept.has(each)) each.remove();
    let next = list.firstElementChild;
    for (const each of wanted) {
      if (each === anchor) {
        while (next !== anchor) {
          const moved = next;
          next = next.nextElementSibling;
          list.append(moved);
        }
      }
      if (each === next) next = next.nextElementSibling;
      else list.insertBefore(each, next);
    }
  }

  // The rows

  const rows = new Map();

  function makeRow(request) {
    const row = element("tr"), cells = {};
    const add = (name, classes) => (cells[name] = row.appendChild(element("td", classes)));
    // two lines: what it is called, and what more is known
    const addPair = (name, more, classes = "") => {
      const cell = row.appendChild(element("td"));
      cells[name] = cell.appendChild(element("span", `live-name ${classes}`));
      cells[more] = cell.appendChild(element("span", "live-name hint"));
    };
    addPair("request", "client", "mono");
    addPair("key", "owner");
    addPair("model", "server");
    write(cells.request, request.request_id);
    cells.request.title = request.request_id;
    cells.state = add("state").appendChild(element("span", "badge"));
    for (const name of ["age", "first", "tokens", "rate", "sent"]) add(name, "number");
    if (mayCut) {
      cells.cut = add("cut", "live-act").appendChild(element("button", "danger", "Cut"));
      cells.cut.type = "button";
      cells.cut.setAttribute("aria-label", `Cut request ${request.request_id}`);
      cells.cut.addEventListener("click", () => ask(row));
    }
    row.parts = cells;
    row.ended = false;
    return row;
  }

  function updateRow(row, request) {
    const cells = row.parts;
    row.request = request;
    write(cells.client, request.client ?? "");
    write(cells.key, request.key_name);
    write(cells.owner, [request.key_prefix, request.user_id, request.team_id].filter(Boolean).join(" · "));
    write(cells.model, request.model || "–");
    write(cells.server, request.server ?? "");
    const place = request.queue_place == null ? "" : `, place ${number(request.queue_place)}`;
    const attempt = request.attempts > 1 ? `, attempt ${number(request.attempts)}` : "";
    write(cells.state, states.get(request.state) + place + attempt);
    cells.state.className = `badge ${badges[request.state] ?? ""}`;
    write(cells.age, seconds(request.age_seconds));
    write(cells.first, seconds(request.first_byte_seconds));
    write(cells.tokens, number(request.tokens));
    const passed = request.first_byte_seconds == null ? 0 : request.age_seconds - request.first_byte_seconds;
    write(cells.rate, request.tokens && passed > 0.5 ? (request.tokens / passed).toFixed(1) : "–");
    write(cells.sent, size(request.bytes_out));
  }

  // A row that somebody is at stays, and says that its request has ended.
  function end(row) {
    row.ended = true;
    row.classList.add("ended");
    write(row.parts.state, "Ended");
    row.parts.state.className = "badge";
    row.parts.cut?.setAttribute("aria-disabled", "true");
  }

  function showRows(requests) {
    const anchor = held(body), wanted = [], seen = new Set();
    for (const request of requests) {
      // clients at two workers may have chosen the same id
      const name = `${request.request_id} ${request.started_at}`;
      if (seen.has(name)) continue;
      seen.add(name);
      let row = rows.get(name);
      if (!row || row.ended) {
        row = makeRow(request);
        rows.set(name, row);
      }
      updateRow(row, request);
      wanted.push(row);
    }
    for (const [name, row] of rows) {
      if (seen.has(name)) continue;
      if (row !== anchor && !(dialog?.open && dialog.row === row)) {
        rows.delete(name);
        continue;
      }
      end(row);
      wanted.splice([...body.children].indexOf(row), 0, row);
    }
    arrange(body, wanted);
    byId("live-empty").hidden = requests.length > 0;
  }

  // The counts

  function showCounts(id, counts, all) {
    const list = byId(id);
    if (!list) return;
    const shown = counts.slice(0, COUNTED), known = new Map([...list.children].map((each) => [each.dataset.name, each]));
    const rest = all - shown.reduce((sum, each) => sum + each.count, 0);
    const wanted = shown.map(({name, value, words, count}) => {
      const item = known.get(value) ?? makeCount(list.dataset.field, value, name, words);
      write(item.lastElementChild, number(count));
      return item;
    });
    if (rest > 0) {
      const item = known.get("\n") ?? element("li");
      if (!item.dataset.name) {
        item.dataset.name = "\n";
        item.append(element("span", "hint", "others"), element("span"));
      }
      write(item.lastElementChild, number(rest));
      wanted.push(item);
    }
    arrange(list, wanted);
  }

  function makeCount(field, value, name, words) {
    const item = element("li"), input = form.elements[field];
    item.dataset.name = value;
    if (value) {
      const button = item.appendChild(element("button", "quiet", name));
      button.type = "button";
      button.setAttribute("aria-label", `Show only ${words} ${name}`);
      button.addEventListener("click", () => {
        input.value = value;
        apply();
      });
    } else {
      item.append(element("span", "hint", "none"));
    }
    item.append(element("span"));
    return item;
  }

  // The whole

  function show(found) {
    const state = new Map(found.by_state.map((each) => [each.name, each.count]));
    const told = ["queued", "waiting", "streaming"].map((name) => state.get(name) ?? 0);
    write(byId("live-matching"), number(found.matching));
    ["queued", "waiting", "streaming"].forEach((name, place) => write(byId(`live-${name}`), number(told[place])));
    write(byId("live-other"), number(found.matching - told.reduce((sum, each) => sum + each, 0)));
    const hidden = found.total - found.matching;
    const filtered = hidden ? ` ${number(hidden)} more are filtered out.` : "";
    write(byId("live-shown"), `Showing ${number(found.requests.length)} of ${number(found.matching)}.${filtered}`);
    write(byId("live-at"), `as of ${new Date(found.at).toLocaleTimeString("en-GB")}`);
    arrange(byId("live-warnings"), found.warnings.map((each) => element("p", "warning", each)));
    showRows(found.requests);
    const plain = (words) => ({name, count}) => ({name, value: name, words, count});
    showCounts("live-models", found.by_model.map(plain("model")), found.matching);
    showCounts("live-servers", found.by_server.map(plain("server")), found.matching);
    const keys = found.by_key.map((each) => ({
      name: each.key_name, value: each.key_prefix || each.key_name, words: "key", count: each.count,
    }));
    showCounts("live-keys", keys, found.matching);
  }

  function showState(state) {
    const status = byId("live-status");
    const [words, kind] = {open: ["updating", "good"], broken: ["not connected", "bad"], paused: ["paused", "warn"]}[state];
    write(status, words);
    status.className = `badge ${kind}`;
  }

  function query() {
    const chosen = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      if (value.trim() && value !== defaults[name]) chosen.set(name, value.trim());
    }
    return chosen.toString();
  }

  function listen() {
    stop?.();
    stop = null;
    if (paused) return;
    const chosen = query();
    stop = console_.events("/ui/live/events" + (chosen ? `?${chosen}` : ""), show, showState);
  }

  // The filters stand in the address: a link shows the same.
  function apply() {
    const chosen = query();
    history.replaceState(null, "", location.pathname + (chosen ? `?${chosen}` : ""));
    if (paused) setPaused(false);
    else listen();
  }

  function setPaused(now) {
    paused = now;
    const button = byId("live-pause");
    button.setAttribute("aria-pressed", String(now));
    write(button, now ? "Resume" : "Pause");
    listen();
    if (now) showState("paused");
  }

  // Cutting

  function ask(row) {
    if (row.ended) return;
    const {request} = row;
    dialog.row = row;
    write(byId("live-cut-id"), request.request_id);
    write(byId("live-cut-key"), request.key_name);
    write(byId("live-cut-model"), request.model || "–");
    byId("live-cut-reason").value = "";
    byId("live-cut-problem").hidden = true;
    dialog.showModal();
  }

  async function cut() {
    const button = byId("live-cut-now"), problem = byId("live-cut-problem");
    button.disabled = true;
    try {
      const sent = {request_id: dialog.row.request.request_id, reason: byId("live-cut-reason").value};
      const found = await console_.ask("/ui/live/cut", {form: sent});
      dialog.close();
      end(dialog.row);
      console_.notice("The request was cut.");
      for (const warning of found.warnings) console_.notice(warning, "warning");
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    } finally {
      button.disabled = false;
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  form.addEventListener("change", apply);
  byId("live-clear").addEventListener("click", (event) => {
    event.preventDefault();
    for (const each of form.elements) {
      if (each.name) each.value = defaults[each.name] ?? "";
    }
    apply();
  });
  byId("live-pause").addEventListener("click", () => setPaused(!paused));
  byId("live-cut-form")?.addEventListener("submit", (event) => {
    event.preventDefault();
    cut();
  });
  listen();
})();
