// Charts over time, drawn by uPlot. Text is written with textContent only.
"use strict";

const charts = (() => {
  const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

  function short(value) {
    for (const [size, name] of units) if (Math.abs(value) >= size) return `${+(value / size).toPrecision(3)} ${name}`;
    return `${+value.toPrecision(3)}`;
  }

  const formats = {
    number: (value) => value.toLocaleString("en-US"),
    short,
    money: (value) => (value !== 0 && Math.abs(value) < 0.01 ? `$${value.toPrecision(2)}` : "$" + value.toLocaleString("en-US", {maximumFractionDigits: 2})),
    seconds: (value) => (value < 1 ? `${+(value * 1000).toPrecision(3)} ms` : `${+value.toPrecision(3)} s`),
    percent: (value) => `${+(value * 100).toPrecision(3)} %`,
  };

  // Times of an axis: the hour, and the date where it changes; in UTC, as everything here.
  function dates(seconds) {
    let shown = "";
    return seconds.map((each) => {
      const text = new Date(each * 1e3).toISOString();
      const [date, time] = [text.slice(0, 10), text.slice(11, 16)];
      const changed = date !== shown;
      shown = date;
      return time === "00:00" ? date : changed ? `${time}\n${date}` : time;
    });
  }

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = (index) => variable(`--series-${(index % 6) + 1}`);

  // A chart in a host element:
  //   charts.draw(host, {times: [Unix seconds], series: [{name, values}], format, stacked, summary})
  // returns {update({times, series}), destroy()}. A value that is null is a gap. `summary` is for those who see no chart.
  function draw(host, options) {
    const format = formats[options.format] ?? formats.number;
    let data = {times: options.times, series: options.series};
    let chart = null;
    host.classList.add("chart");
    host.setAttribute("role", "img");
    host.setAttribute("aria-label", options.summary ?? data.series.map((each) => each.name).join(", "));

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
      const text = variable("--quiet");
      const line = variable("--line");
      const axis = {stroke: text, grid: {stroke: line, width: 1}, ticks: {stroke: line, width: 1}};
      const bars = options.stacked && data.times.length <= 62 ? uPlot.paths.bars({size: [0.8, 60]}) : undefined;
      // a bar stands on both sides of its time
      const half = bars ? (data.times.length > 1 ? (data.times[1] - data.times[0]) / 2 : 1800) : 0;
      chart = new uPlot(
        {
          width: Math.max(host.clientWidth, 200),
          height: options.height ?? 240,
          cursor: {points: {show: !options.stacked}},
          legend: {show: data.series.length > 0, live: true},
          scales: {x: {time: true, range: (_chart, low, high) => [low - half, high + half]}, y: {range: (_chart, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.05 : 1]}},
          axes: [{...axis, values: (_chart, splits) => dates(splits)}, {...axis, size: 64, values: (_chart, splits) => splits.map(format)}],
          tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
          series: [
            {value: (_chart, seconds) => (seconds == null ? "" : new Date(seconds * 1e3).toISOString().slice(0, 16).replace("T", " "))},
            ...data.series.map((each, index) => ({
              label: each.name,
              stroke: color(index),
              width: bars ? 0 : options.stacked ? 1 : 2,
              fill: options.stacked ? color(index) : undefined,
              paths: bars,
              points: {show: false},
              value: (_chart, _value, _series, at) => {
                const found = at == null ? null : data.series[index].values[at];
                return found == null ? "" : format(found);
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
    document.addEventListener("themechange", again);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    make();
    resized.observe(host);

    return {
      update(next) {
        const same = next.series.length === data.series.length && next.series.every((each, index) => each.name === data.series[index].name);
        data = {times: next.times, series: next.series};
        if (same) chart.setData([data.times, ...heights()]);
        else make();
      },
      destroy() {
        resized.disconnect();
        document.removeEventListener("themechange", again);
        matchMedia("(prefers-color-scheme: dark)").removeEventListener("change", again);
        chart?.destroy();
      },
    };
  }

  // Charts that a page declares: <div data-chart="{…options as JSON…}"></div>
  document.addEventListener("DOMContentLoaded", () => {
    for (const host of document.querySelectorAll("[data-chart]")) draw(host, JSON.parse(host.dataset.chart));
  });

  return {draw, formats};
})();
