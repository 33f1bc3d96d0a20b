// Charts of the console, drawn by uPlot. Whoever does not see them reads the label of the chart, or its table.
"use strict";

const charts = (() => {
  // Lines differ by their dashes too, not by their colour alone.
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [1, 4]];
  const MOST_ROWS = 120;

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const known = (value) => value !== null && value !== undefined;

  // How numbers are written; the pages of the server write them alike.
  const words = {
    number(value) {
      if (!known(value)) return "–";
      return value.toLocaleString("en", {maximumFractionDigits: Math.abs(value) >= 100 ? 0 : 1});
    },
    short(value) {
      if (!known(value)) return "–";
      for (const [size, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
        if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))} ${name}`;
      }
      return words.number(value);
    },
    seconds(value) {
      if (!known(value)) return "–";
      if (value < 1) return `${Number((value * 1000).toPrecision(3))} ms`;
      if (value < 60) return `${Number(value.toPrecision(3))} s`;
      const minutes = Math.floor(value / 60), rest = Math.floor(value % 60);
      return `${minutes} min${rest ? ` ${rest} s` : ""}`;
    },
    money(value) {
      if (!known(value)) return "–";
      if (value !== 0 && Math.abs(value) < 0.01) return "$" + value.toLocaleString("en", {maximumSignificantDigits: 3, maximumFractionDigits: 12});
      const digits = value === 0 || Math.abs(value) >= 1 ? 2 : 4;
      return "$" + value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
    },
    percent(value) {
      return known(value) ? `${Number((value * 100).toPrecision(3))} %` : "–";
    },
    // on the axis of time, whose marks are so many seconds apart
    mark(seconds, apart) {
      const options = apart >= 86400
        ? {day: "numeric", month: "short", timeZone: "UTC"}
        : {hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...(apart < 60 ? {second: "2-digit"} : {})};
      return new Date(seconds * 1000).toLocaleString("en", options);
    },
    moment(seconds) {
      return new Date(seconds * 1000).toLocaleString("sv");
    },
    time(seconds, wholeDays = false) {
      const options = wholeDays
        ? {day: "numeric", month: "short", timeZone: "UTC"}
        : {hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23"};
      return new Date(seconds * 1000).toLocaleString("en", options);
    },
  };

  function element(tag, {text, parent, ...attributes} = {}) {
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    if (text !== undefined) found.textContent = text;
    parent?.append(found);
    return found;
  }

  function sample(index, parent) {
    const namespace = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(namespace, "svg");
    svg.setAttribute("width", "26");
    svg.setAttribute("height", "8");
    svg.setAttribute("aria-hidden", "true");
    const line = document.createElementNS(namespace, "line");
    for (const [name, value] of [["x1", 0], ["x2", 26], ["y1", 4], ["y2", 4], ["stroke-width", 2]]) {
      line.setAttribute(name, String(value));
    }
    line.setAttribute("stroke-dasharray", DASHES[index].join(" "));
    line.setAttribute("class", `stroke-${index + 1}`);
    svg.append(line);
    parent.append(svg);
  }

  // Makes a chart of a <figure data-title="…">. `series` has {name, format} for each column, or {name} with `format`
  // for all; `bars` draws bars; `days` says that each point is a day; `sync` shares the cursor with other charts.
  // Returns {update(times, columns)}: Unix times, and a list of numbers or nulls for each series.
  function make(figure, {series, format = words.number, bars = false, days = false, sync = ""}) {
    figure.replaceChildren();
    const head = element("figcaption", {parent: figure});
    element("h3", {text: figure.dataset.title, parent: head});
    const legend = element("ul", {class: "legend", parent: head});
    const values = series.map((each, index) => {
      const item = element("li", {parent: legend});
      sample(index, item);
      element("span", {text: ` ${each.name} `, parent: item});
      return element("b", {text: "–", parent: item});
    });
    const plot = element("div", {class: "chart", role: "img", parent: figure});
    const details = element("details", {parent: figure});
    element("summary", {text: "As a table", parent: details});
    const frame = element("div", {
      class: "plain-table tall", tabindex: "0", role: "region", "aria-label": `${figure.dataset.title}, as a table`,
      parent: details,
    });
    let times = [], columns = series.map(() => []), chart = null;

    // A point between two that are not known has no line.
    function alone(plotted, place) {
      const column = plotted.data[place];
      const found = [];
      column.forEach((value, at) => {
        if (known(value) && !known(column[at - 1]) && !known(column[at + 1])) found.push(at);
      });
      return found;
    }

    function options() {
      const text = color("--quiet"), grid = {stroke: color("--line"), width: 1};
      const axis = {stroke: text, grid, ticks: grid, font: "11px system-ui, sans-serif"};
      const zone = days ? (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC") : (seconds) => new Date(seconds * 1000);
      return {
        width: Math.max(plot.clientWidth, 120),
        height: 170,
        tzDate: zone,
        legend: {show: false},
        cursor: {y: false, drag: {x: false, y: false}, ...(sync ? {sync: {key: sync}} : {})},
        scales: {y: {range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1]}},
        axes: [{...axis, values: (_, marks, __, ___, step) => marks.map((at) => words.mark(at, step))}, {...axis, size: 64, values: (_, marks) => marks.map(format)}],
        series: [
          {},
          ...series.map((each, index) => ({
            label: each.name,
            stroke: color(`--series-${index + 1}`),
            width: 1.5,
            dash: DASHES[index],
            points: {show: true, size: 5, filter: alone},
            ...(bars ? {paths: uPlot.paths.bars({size: [0.7, 40]}), fill: color(`--series-${index + 1}`), points: {show: false}} : {}),
          })),
        ],
        hooks: {setCursor: [(plotted) => tell(plotted.cursor.idx)]},
      };
    }

    function draw() {
      chart?.destroy();
      chart = new uPlot(options(), [times, ...columns], plot);
    }

    // Says the values of a point in the legend: under the cursor, else the last.
    function tell(index) {
      columns.forEach((column, place) => {
        const at = known(index) ? index : column.length - 1;
        values[place].textContent = (series[place].format ?? format)(column[at]);
      });
    }

    function label() {
      const told = series.map((each, place) => {
        const write = each.format ?? format;
        const column = columns[place].filter(known);
        if (!column.length) return `${each.name}: nothing was measured`;
        return `${each.name}: last ${write(column[column.length - 1])}, highest ${write(Math.max(...column))}`;
      });
      plot.setAttribute("aria-label", `${figure.dataset.title}. ${told.join(". ")}.`);
    }

    function table() {
      if (!details.open) return;
      const made = document.createElement("table");
      const row = element("tr", {parent: element("thead", {parent: made})});
      element("th", {scope: "col", text: days ? "Day" : "Time", parent: row});
      for (const each of series) element("th", {scope: "col", class: "number", text: each.name, parent: row});
      const body = element("tbody", {parent: made});
      for (let at = times.length - 1; at >= Math.max(times.length - MOST_ROWS, 0); at--) {
        const line = element("tr", {parent: body});
        element("th", {scope: "row", text: words.time(times[at], days), parent: line});
        columns.forEach((column, place) =>
          element("td", {class: "number", text: (series[place].format ?? format)(column[at]), parent: line}));
      }
      frame.replaceChildren(made);
    }

    details.addEventListener("toggle", table);
    new ResizeObserver(() => {
      if (chart && plot.clientWidth) chart.setSize({width: plot.clientWidth, height: 170});
    }).observe(plot);
    const again = () => {
      if (chart && figure.isConnected) draw();
    };
    document.addEventListener("themechange", again);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

    return {
      update(newTimes, newColumns) {
        times = newTimes;
        columns = newColumns;
        if (chart) chart.setData([times, ...columns]);
        else draw();
        tell(null);
        label();
        table();
      },
    };
  }

  return {element, make, words};
})();
