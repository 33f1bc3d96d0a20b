// Lists of records: choosing several of them.
"use strict";

(() => {
  const boxes = (form) => [...form.querySelectorAll('input[name="chosen"]')];

  function count(form) {
    const chosen = boxes(form).filter((box) => box.checked).length;
    form.querySelector("[data-chosen]").hidden = chosen === 0;
    form.querySelector("[data-count]").textContent = String(chosen);
    form.querySelector("[data-choose-all]").checked = chosen > 0 && chosen === boxes(form).length;
  }

  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-choosing]");
    if (!form) return;
    if ("chooseAll" in event.target.dataset) {
      for (const box of boxes(form)) box.checked = event.target.checked;
    }
    count(form);
  });
})();
