// The overview: figures and charts every 5 seconds, of the period that is chosen.
"use strict";

(() => {
  const {element, figure, formats: words} = charts;
  const EVERY = 5000;
  const QUANTILES = ["p50", "p95", "p99"];
  const CHARTS = {
    requests: {names: ["requests", "failed"], columns: ["requests_per_second", "failed_per_second"], format: "number"},
    tokens: {names: ["input", "output"], columns: ["input_tokens_per_second", "output_tokens_per_second"], format: "short"},
    ttft: {names: QUANTILES, columns: ["ttft_p50", "ttft_p95", "ttft_p99"], format: "seconds"},
    duration: {names: QUANTILES, columns: ["duration_p50", "duration_p95", "duration_p99"], format: "seconds"},
    in_flight: {names: ["in flight"], columns: ["in_flight"], format: "number"},
  };

  // What was used by day. The part of the page comes later, and again and again.
  let byDay = null;
  function showDays() {
    const box = document.getElementById("days-chart");
    if (!box || box.children.length) return;
    byDay?.destroy();
    byDay = figure(box, {names: ["spend"], format: "money", stacked: true, days: true});
    const days = JSON.parse(box.dataset.days);
    byDay.update(days.map((each) => Date.parse(each.date) / 1000), [days.map((each) => each.spend)]);
  }
  document.addEventListener("htmx:afterSettle", showDays);
  showDays();

  const period = document.getElementById("period");
  if (!period) return;

  const state = document.getElementById("period-state");
  const drawn = {};
  for (const [name, about] of Object.entries(CHARTS)) {
    drawn[name] = figure(document.querySelector(`[data-figure="${name}"]`), {...about, sync: "overview"});
  }

  function show(found) {
    const {now, series} = found;
    const shown = {
      in_flight: words.number(now.in_flight),
      requests_per_second: words.number(now.requests_per_second),
      failed_share: words.percent(now.requests ? now.failed / now.requests : 0),
      input_tokens_per_second: words.short(now.input_tokens_per_second),
      output_tokens_per_second: words.short(now.output_tokens_per_second),
      ttft: words.seconds(now.ttft.p95),
      duration: words.seconds(now.duration.p95),
    };
    for (const [name, text] of Object.entries(shown)) {
      document.querySelector(`[data-now="${name}"]`).textContent = text;
    }
    for (const [name, about] of Object.entries(CHARTS)) {
      drawn[name].update(series.time, about.columns.map((column) => series[column]));
    }
    showErrors(found.errors);
    showModels(found.summary, found.models);
    const since = Date.parse(found.complete_since) / 1000;
    let told = "";
    if (since > series.time[0]) told = `Counted since ${charts.utc(since)} UTC, when the gateway began.`;
    if (found.of_one_process) told = "The housekeeper does not answer: these are the figures of one worker.";
    if (state.textContent !== told) state.textContent = told;
  }

  function showErrors(errors) {
    const body = document.querySelector("#errors tbody");
    body.replaceChildren(...errors.map((each) => {
      const row = document.createElement("tr");
      element("th", {scope: "row", text: each.cause, title: each.meaning, parent: row});
      element("td", {text: each.by, parent: row});
      element("td", {class: "number", text: words.number(each.count), parent: row});
      return row;
    }));
    document.getElementById("errors").hidden = !errors.length;
    document.getElementById("no-errors").hidden = Boolean(errors.length);
  }

  function showModels(summary, models) {
    const rows = [{...summary, model: null}, ...models].map((each) => {
      const row = document.createElement("tr");
      const name = each.model === null ? "all" : each.model || "no model";
      element("th", {scope: "row", text: name, parent: row});
      const cells = [
        words.number(each.requests), words.number(each.failed),
        words.short(each.input_tokens_per_second), words.short(each.output_tokens_per_second),
        ...[each.ttft, each.duration].flatMap((times) => ["p50", "p95", "p99"].map((name) => words.seconds(times[name]))),
      ];
      for (const text of cells) element("td", {class: "number", text, parent: row});
      return row;
    });
    document.querySelector("#models tbody").replaceChildren(...rows);
  }

  let timer = 0, asking = null;
  async function look(poll = true) {
    clearTimeout(timer);
    asking?.abort();
    const mine = asking = new AbortController();
    try {
      show(await console_.ask(`/ui/overview/traffic?minutes=${period.dataset.minutes}`, {poll, signal: mine.signal}));
    } catch (error) {
      if (mine.signal.aborted) return;
      state.textContent = `These figures are old: ${error.message}`;
    }
    if (asking === mine && !document.hidden) timer = setTimeout(look, EVERY);
  }

  period.addEventListener("click", (event) => {
    const button = event.target.closest("[data-period]");
    if (!button) return;
    for (const each of period.querySelectorAll("[data-period]")) {
      each.setAttribute("aria-pressed", String(each === button));
    }
    period.dataset.minutes = button.dataset.period;
    document.getElementById("period-name").textContent = button.textContent;
    history.replaceState(null, "", `?minutes=${button.dataset.period}`);
    look(false);
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else look();
  });
  look();
})();
