"use strict";
// Small charts over the steps: one SVG a chart, a crosshair with the values under the pointer, and a log scale.
(() => {
  const WIDTH = 480, HEIGHT = 220, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 26;
  const COLOURS = ["#2f6fdb", "#d9663b", "#2a9d6f", "#9158c9", "#c2a021", "#c74b7a"];
  const SVG = "http://www.w3.org/2000/svg";

  const make = (name, attributes = {}, parent = null, text = "") => {
    const html = ["div", "h3", "button", "ul", "li"].includes(name);
    const node = html ? document.createElement(name) : document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };

  const figure = (value) => {
    const size = Math.abs(value);
    if (value === 0) return "0";
    return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };

  // Round values between low and high, about `count` of them.
  const ticks = (low, high, count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    return found;
  };

  const drawChart = (chart, host) => {
    const box = make("div", { class: "chart" }, host);
    make("h3", {}, box, chart.title);
    const series = Object.entries(chart.series).map(([name, points], index) => ({
      name, points, colour: COLOURS[index % COLOURS.length],
    }));
    const all = series.flatMap((line) => line.points);
    const positive = all.every(([, value]) => value > 0);
    const tip = make("div", { class: "tip", hidden: "" }, box);
    let logarithmic = false, svg = null;

    const draw = () => {
      if (svg) svg.remove();
      svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.title });
      box.insertBefore(svg, tip);
      const scale = logarithmic ? Math.log10 : (value) => value;
      const steps = all.map(([step]) => step), values = all.map(([, value]) => scale(value));
      const last = Math.max(...steps, 1), first = Math.min(...steps);
      let low = Math.min(...values), high = Math.max(...values);
      const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      low -= margin; high += margin;
      const x = (step) => LEFT + ((step - first) / Math.max(last - first, 1)) * (WIDTH - LEFT - RIGHT);
      const y = (value) => HEIGHT - BOTTOM - ((scale(value) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);

      for (const at of ticks(low, high, 4)) {
        const value = logarithmic ? 10 ** at : at;
        make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), stroke: "var(--grid)" }, svg);
        make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, svg, figure(Number(value.toPrecision(3))));
      }
      for (const at of ticks(first, Math.max(last, first + 1), 5)) {
        if (Number.isInteger(at) && at <= last)
          make("text", { x: x(at), y: HEIGHT - 8, "text-anchor": "middle" }, svg, at.toLocaleString("en"));
      }
      for (const line of series) {
        const path = line.points.map(([step, value]) => `${x(step)},${y(value)}`).join(" ");
        make("polyline", { points: path, fill: "none", stroke: line.colour, "stroke-width": 1.8, "stroke-linejoin": "round" }, svg);
        if (line.points.length < 20) {
          for (const [step, value] of line.points) make("circle", { cx: x(step), cy: y(value), r: 2.6, fill: line.colour }, svg);
        }
      }
      const cross = make("g", { visibility: "hidden", class: "cross" }, svg);

      svg.addEventListener("pointermove", (event) => {
        const bounds = svg.getBoundingClientRect();
        const pointer = ((event.clientX - bounds.left) / bounds.width) * WIDTH;
        const nearest = (points) => points.reduce((a, b) => (Math.abs(x(b[0]) - pointer) < Math.abs(x(a[0]) - pointer) ? b : a));
        const [step] = nearest(all);
        cross.replaceChildren();
        cross.setAttribute("visibility", "visible");
        make("line", { x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM, stroke: "var(--soft)", "stroke-dasharray": "3 3" }, cross);
        tip.replaceChildren(make("div", {}, null, `step ${step.toLocaleString("en")}`));
        for (const line of series) {
          // Of an evaluation before and after the same step, the later one.
          const point = line.points.findLast((candidate) => candidate[0] === step);
          if (!point) continue;
          make("circle", { cx: x(step), cy: y(point[1]), r: 4, fill: line.colour, stroke: "var(--card)", "stroke-width": 1.5 }, cross);
          make("div", {}, tip, `${line.name} ${figure(point[1])}`);
        }
        tip.hidden = false;
        const left = svg.offsetLeft || 12, place = (x(step) / WIDTH) * bounds.width;
        const right = place > bounds.width * 0.6;
        tip.style.left = `${left + place + (right ? -10 - tip.offsetWidth : 10)}px`;
        tip.style.top = "44px";
      });
      svg.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); tip.hidden = true; });
    };

    if (positive && all.length > 3) {
      const button = make("button", { type: "button", "aria-pressed": "false" }, box, "log");
      button.addEventListener("click", () => {
        logarithmic = !logarithmic;
        button.setAttribute("aria-pressed", String(logarithmic));
        draw();
      });
    }
    draw();
    if (series.length > 1) {
      const legend = make("ul", { class: "legend" }, box);
      for (const line of series) make("li", { style: `--colour: ${line.colour}` }, legend, line.name);
    }
  };

  const host = document.getElementById("charts");
  for (const chart of JSON.parse(document.getElementById("data").textContent)) drawChart(chart, host);
})();
