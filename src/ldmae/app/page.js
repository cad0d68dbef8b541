// What the buttons at an image do, and a report that is as high as its content.

addEventListener("click", async event => {
  const button = event.target.closest?.("[data-do]");
  if (!button) return;
  const { src } = button.closest(".ld-image, .ld-card").querySelector("img");
  const type = src.slice(5, src.indexOf(";"));  // data:image/png;base64,…
  const name = `${button.dataset.name}.${type.split("/")[1]}`;
  if (button.dataset.do === "save") {
    Object.assign(document.createElement("a"), { href: src, download: name }).click();
  } else if (button.dataset.do === "send") {
    [...document.querySelectorAll("[role=tab]")].find(tab => tab.innerText.trim() === "Autoencoder").click();
    const files = new DataTransfer();
    files.items.add(new File([await (await fetch(src)).blob()], name, { type }));
    let input;
    while (!(input = document.querySelector("#look-drop input[type=file]"))) await new Promise(requestAnimationFrame);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    scrollTo(0, 0);
  }
});

document.addEventListener("load", event => {
  const frame = event.target;
  if (!frame.matches?.(".ld-report")) return;
  const content = frame.contentDocument.documentElement;
  new ResizeObserver(() => { frame.style.height = `${content.offsetHeight}px`; }).observe(content);
}, true);
