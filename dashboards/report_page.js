"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const OPTIONS = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const PAPER = 640, paper = matchMedia("print");  // pixels that fit an A4 page with its margins
let colours = new Map();
function look() {
  const style = getComputedStyle(document.documentElement);
  colours = new Map(["card", "edge", "grid", "text", "soft", "accent", "second", "accent-pale", "second-pale", "good", "bad", "act"]
    .map((name) => ["@" + name, style.getPropertyValue("--" + name).trim()]));
}
// Colours stand in the figures as @names, so that the same figure can be drawn light and dark.
function themed(value) {
  if (typeof value === "string") return colours.get(value) || value;
  if (Array.isArray(value)) return value.map(themed);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
}
function draw(id, figure) {
  const element = document.getElementById(id);
  if (!element || !figure) return;
  const { data, layout } = themed(figure);
  if (element.clientWidth < 560) narrow(data, layout);
  if (paper.matches) layout.width = PAPER;
  element.style.height = layout.height + "px";
  Plotly.react(element, data, layout, { ...OPTIONS, displayModeBar: element.clientWidth > 600 ? undefined : false });
}
// On a phone the names of the marks would take the room of the charts: they go into a legend below.
function narrow(data, layout) {
  for (const key of Object.keys(layout)) {
    if (/^xaxis/.test(key) && layout[key].title) layout[key].title.font.size = 10.5;
  }
  layout.margin = { ...layout.margin, l: 36, r: 8 };
  if (!layout.yaxis4) {
    layout.legend = { ...layout.legend, y: -.22, yanchor: "top" };
    layout.height += 40;
    return;
  }
  layout.yaxis4.showticklabels = false;
  layout.showlegend = true;
  layout.legend = { ...layout.legend, y: -.12, yanchor: "top" };
  layout.height += 30;
  const kinds = ["diamond", "circle", "square", "triangle-up", "cross", "star"];
  data.filter((trace) => trace.yaxis === "y4").forEach((trace, place) => {
    trace.showlegend = true;
    trace.marker.symbol = kinds[place % kinds.length];
  });
}
const picker = document.getElementById("picker");
function one() {
  if (!picker) return;
  const place = Number(picker.value);
  draw("stream", figures.streams[place]);
  for (const why of document.querySelectorAll(".why")) why.hidden = Number(why.dataset.place) !== place;
}
function all() {
  look();
  for (const id of ["over-time", "forgetting", "policies"]) draw(id, figures[id]);
  one();
}
if (picker) picker.addEventListener("change", one);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
paper.addEventListener("change", all);
all();
