// The tabs of the page that connects clients (WAI-ARIA: tabs).
"use strict";

(() => {
  const tabs = [...document.querySelectorAll('[role="tab"]')];

  function choose(chosen, {focus = false} = {}) {
    for (const tab of tabs) {
      const is = tab === chosen;
      tab.setAttribute("aria-selected", String(is));
      tab.tabIndex = is ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !is;
    }
    const client = chosen.id.replace("tab-", "");
    for (const field of document.querySelectorAll("[data-client]")) field.value = client;
    if (focus) chosen.focus();
  }

  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const to = {ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(tabs.at(to % tabs.length), {focus: true});
    });
  }
})();
