// Charts over time, drawn by uPlot. Whoever does not see them reads the label of the chart, or its table.
// Text is written with textContent only.
"use strict";

const charts = (() => {
  // Lines differ by their dashes too, not by their colour alone.
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [1, 4]];
  const MOST_ROWS = 120;
  const NOTHING = "–";
  const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

  const known = (value) => value !== null && value !== undefined;
  const plain = (value, digits) => value.toLocaleString("en-US", {maximumFractionDigits: digits});

  // How numbers are written; the templates write them alike. A value that is not known is a dash.
  const writers = {
    number: (value) => plain(value, Math.abs(value) >= 100 ? 0 : 1),
    short(value) {
      for (const [size, name] of units) if (Math.abs(value) >= size) return `${+(value / size).toPrecision(3)} ${name}`;
      return `${+value.toPrecision(3)}`;
    },
    money(value) {
      if (value !== 0 && Math.abs(value) < 0.01) {
        return "$" + value.toLocaleString("en-US", {maximumSignificantDigits: 3, maximumFractionDigits: 12});
      }
      const digits = value === 0 || Math.abs(value) >= 1 ? 2 : 4;
      return "$" + value.toLocaleString("en-US", {minimumFractionDigits: digits, maximumFractionDigits: digits});
    },
    seconds(value) {
      if (value < 1) return `${+(value * 1000).toPrecision(3)} ms`;
      if (value < 60) return `${+value.toPrecision(3)} s`;
      const rest = Math.floor(value % 60);
      return `${Math.floor(value / 60)} min${rest ? ` ${rest} s` : ""}`;
    },
    percent: (value) => `${+(value * 100).toPrecision(3)} %`,
  };
  const formats = Object.fromEntries(
    Object.entries(writers).map(([name, write]) => [name, (value) => (known(value) ? write(value) : NOTHING)]),
  );

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = (index) => variable(`--series-${(index % 6) + 1}`);
  const utc = (seconds) => new Date(seconds * 1e3).toISOString().slice(0, 16).replace("T", " ");

  // Times of an axis: the hour, and the date where it changes; in UTC, as everything here. The marks are `apart` seconds.
  function dates(marks, apart = 60) {
    let shown = "";
    return marks.map((each) => {
      const text = new Date(each * 1e3).toISOString();
      const [date, time] = [text.slice(0, 10), text.slice(11, apart < 60 ? 19 : 16)];
      const changed = date !== shown;
      shown = date;
      return text.slice(11, 19) === "00:00:00" ? date : changed ? `${time}\n${date}` : time;
    });
  }

  // The places of points between two that are not known: no line shows them.
  function alone(values) {
    return [...values.keys()].filter((at) => known(values[at]) && !known(values[at - 1]) && !known(values[at + 1]));
  }

  function element(tag, {text, parent, ...attributes} = {}) {
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    if (text !== undefined) found.textContent = text;
    parent?.append(found);
    return found;
  }

  // A chart in a host element:
  //   charts.draw(host, {times: [Unix seconds], series: [{name, values}], format, stacked, summary})
  // returns {update({times, series, summary}), destroy()}. A value that is null is a gap. `summary` is for those who see
  // no chart. `lines` draws lines with dashes and without uPlot's legend, which `legend: false` leaves out too; `sync` shares the
  // cursor with other charts; `cursor` is told of the place under it.
  function draw(host, options) {
    const format = formats[options.format] ?? formats.number;
    let data = {times: options.times, series: options.series};
    let chart = null;
    host.classList.add("chart");
    host.setAttribute("role", "img");
    const tell = (summary) => host.setAttribute("aria-label", summary ?? data.series.map((each) => each.name).join(", "));
    tell(options.summary);

    // In a stack each series stands on those after it: it is drawn first and as high as all of them together.
    function heights() {
      const rows = data.series.map((each) => each.values);
      if (!options.stacked) return rows;
      const stacked = [];
      let below = data.times.map(() => 0);
      for (const row of [...rows].reverse()) {
        below = below.map((sum, index) => sum + (row[index] ?? 0));
        stacked.unshift(below);
      }
      return stacked;
    }

    function make() {
      chart?.destroy();
      const {lines = false, stacked = false} = options;
      const text = variable("--quiet");
      const line = variable("--line");
      const axis = {stroke: text, grid: {stroke: line, width: 1}, ticks: {stroke: line, width: 1}, font: "11px system-ui, sans-serif"};
      const bars = stacked && data.times.length <= 62 ? uPlot.paths.bars({size: [0.8, 60]}) : undefined;
      // a bar stands on both sides of its time
      const total = (index) => data.series[index].values.reduce((sum, each) => sum + (each ?? 0), 0);
      // of whole days no hour is marked
      const daily = data.times.length > 1 && data.times.every((each) => each % 86400 === 0);
      const incrs = daily ? {incrs: [1, 2, 7, 14, 28, 91, 182, 364].map((days) => days * 86400)} : {};
      const half = bars ? (data.times.length > 1 ? (data.times[1] - data.times[0]) / 2 : 1800) : 0;
      chart = new uPlot(
        {
          width: Math.max(host.clientWidth, 200),
          height: options.height ?? 240,
          cursor: {
            points: {show: !stacked},
            ...(lines ? {y: false, drag: {x: false, y: false}} : {}),
            ...(options.sync ? {sync: {key: options.sync}} : {}),
          },
          legend: {show: (options.legend ?? !lines) && data.series.length > 0, live: true},
          scales: {x: {time: true, range: (_chart, low, high) => [low - half, high + half]}, y: {range: (_chart, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.05 : 1]}},
          axes: [{...axis, ...incrs, space: 80, values: (_chart, marks, _axis, _space, apart) => dates(marks, apart)}, {...axis, size: 64, values: (_chart, splits) => splits.map(format)}],
          tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
          hooks: options.cursor ? {setCursor: [(drawn) => options.cursor(drawn.cursor.idx)]} : {},
          series: [
            {value: (_chart, seconds) => (seconds == null ? (stacked ? "all of it" : NOTHING) : utc(seconds))},
            ...data.series.map((each, index) => ({
              label: each.name,
              stroke: color(index),
              width: bars ? 0 : stacked ? 1 : lines ? 1.5 : 2,
              dash: lines ? DASHES[index % DASHES.length] : undefined,
              fill: stacked ? color(index) : undefined,
              paths: bars,
              points: lines ? {show: true, size: 5, filter: (drawn, place) => alone(drawn.data[place])} : {show: false},
              value: (_chart, _value, _series, at) => {
                // while nobody points at a time, a stack says what it adds up to
                if (at == null) return stacked ? format(total(index)) : NOTHING;
                return format(data.series[index].values[at]);
              },
            })),
          ],
        },
        [data.times, ...heights()],
        host,
      );
    }

    const again = () => make();
    const resized = new ResizeObserver(() => {
      const width = Math.max(host.clientWidth, 200);
      if (chart && Math.abs(chart.width - width) > 1) chart.setSize({width, height: chart.height});
    });
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    document.addEventListener("themechange", again);
    scheme.addEventListener("change", again);
    make();
    resized.observe(host);

    return {
      update(next) {
        const same = next.series.length === data.series.length && next.series.every((each, index) => each.name === data.series[index].name);
        data = {times: next.times, series: next.series};
        tell(next.summary);
        if (same) chart.setData([data.times, ...heights()]);
        else make();
      },
      destroy() {
        resized.disconnect();
        document.removeEventListener("themechange", again);
        scheme.removeEventListener("change", again);
        chart?.destroy();
      },
    };
  }

  function sample(index, parent) {
    const namespace = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(namespace, "svg");
    const line = document.createElementNS(namespace, "line");
    for (const [name, value] of [["width", 26], ["height", 8], ["aria-hidden", true]]) svg.setAttribute(name, String(value));
    for (const [name, value] of [["x1", 0], ["x2", 26], ["y1", 4], ["y2", 4], ["stroke-width", 2]]) line.setAttribute(name, String(value));
    line.setAttribute("stroke-dasharray", DASHES[index % DASHES.length].join(" "));
    line.setAttribute("class", `stroke-${(index % 6) + 1}`);
    svg.append(line);
    parent.append(svg);
  }

  // Makes of a <figure data-title="…"> a chart with its legend, and a table of the same figures.
  //   charts.figure(figure, {names: ["p50", "p95"], format, stacked, days, sync})
  // returns {update(times, columns), destroy()}. `days` says that each point is a day in UTC.
  function figure(box, {names, format: formatName = "number", stacked = false, days = false, sync = ""}) {
    const format = formats[formatName];
    const title = box.dataset.title;
    const time = (seconds) => (days ? utc(seconds).slice(0, 10) : new Date(seconds * 1e3).toISOString().slice(11, 19));
    box.replaceChildren();
    const head = element("figcaption", {parent: box});
    element("h3", {text: title, parent: head});
    const legend = element("ul", {class: "legend", parent: head});
    const values = names.map((name, index) => {
      const item = element("li", {parent: legend});
      sample(index, item);
      element("span", {text: ` ${name} `, parent: item});
      return element("b", {text: NOTHING, parent: item});
    });
    const plot = element("div", {parent: box});
    const details = element("details", {parent: box});
    element("summary", {text: "As a table", parent: details});
    const frame = element("div", {class: "plain-table tall", tabindex: "0", role: "region", "aria-label": `${title}, as a table`, parent: details});
    let times = [], columns = names.map(() => []), chart = null;

    // the point under the cursor, else the last
    const point = (index) =>
      columns.forEach((column, place) => (values[place].textContent = format(column[index ?? column.length - 1])));

    function summary() {
      const told = names.map((name, place) => {
        const column = columns[place].filter(known);
        if (!column.length) return `${name}: nothing was measured`;
        return `${name}: last ${format(column[column.length - 1])}, highest ${format(Math.max(...column))}`;
      });
      return `${title}. ${told.join(". ")}.`;
    }

    function table() {
      if (!details.open) return;
      const made = document.createElement("table");
      const row = element("tr", {parent: element("thead", {parent: made})});
      element("th", {scope: "col", text: days ? "Day" : "Time (UTC)", parent: row});
      for (const name of names) element("th", {scope: "col", class: "number", text: name, parent: row});
      const body = element("tbody", {parent: made});
      for (let at = times.length - 1; at >= Math.max(times.length - MOST_ROWS, 0); at--) {
        const line = element("tr", {parent: body});
        element("th", {scope: "row", text: time(times[at]), parent: line});
        for (const column of columns) element("td", {class: "number", text: format(column[at]), parent: line});
      }
      frame.replaceChildren(made);
    }
    details.addEventListener("toggle", table);

    return {
      update(newTimes, newColumns) {
        [times, columns] = [newTimes, newColumns];
        const next = {times, series: names.map((name, place) => ({name, values: columns[place]})), summary: summary()};
        if (chart) chart.update(next);
        else chart = draw(plot, {...next, format: formatName, stacked, lines: !stacked, legend: false, sync, height: 170, cursor: point});
        point();
        table();
      },
      destroy() {
        chart?.destroy();
      },
    };
  }

  // Charts that a page declares: <div data-chart="{…options as JSON…}"></div>
  document.addEventListener("DOMContentLoaded", () => {
    for (const host of document.querySelectorAll("[data-chart]")) draw(host, JSON.parse(host.dataset.chart));
  });

  return {draw, element, figure, formats, utc};
})();
