// The demo in a browser, begun with a fine-tuned model whose autoencoder is known; ENCODER has an autoencoder only:
// node space_browser.cjs CHROMIUM ADDRESS ENCODER IMAGE DICOM WIDTH light|dark FOLDER_FOR_SCREENSHOTS
const { chromium } = require("playwright-core");
const [executablePath, address, encoder, image, dicom, width, colorScheme, folder] = process.argv.slice(2);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: { width: Number(width), height: 900 }, colorScheme });
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => {
    // Fonts of other hosts cannot be had without a network.
    const elsewhere = /^https?:/.test(message.location().url) && !message.location().url.startsWith(new URL(address).origin);
    if (message.type() === "error" && !elsewhere) errors.push(`${message.text()} ${message.location().url}`);
  });
  const check = (fact, what) => {
    if (!fact) throw new Error(what);
  };
  const narrow = async () =>
    check(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth), "scrolls sideways");

  const button = (name) => page.getByRole("button", { name });
  const whole = async (name) => {
    await page.waitForFunction(() => !/processing|queue/.test(document.body.innerText), null, { timeout: 60000 });
    await narrow();
    await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  };
  const table = () => page.getByRole("gridcell").allInnerTexts();
  const shown = (name) => page.getByAltText(name);
  const source = (name) => async () => (await shown(name).count()) && shown(name).getAttribute("src");
  const changes = async (read, what, act) => {
    const before = JSON.stringify(await read());
    await act();
    for (let i = 0; i < 150; i++) {
      const now = await read();
      if (now && JSON.stringify(now) !== before) return;
      await page.waitForTimeout(200);
    }
    throw new Error(`nothing changed: ${what}`);
  };
  // By keyboard: the number of a slider, or its handle.
  const move = async (name, key) => {
    const slider = page.getByRole("slider", { name }).first();
    await slider.focus();
    await slider.press(key);
    await page.keyboard.press("Tab");
  };
  const SENSITIVE = /Where is the model sensitive/;
  const PANELS = ["What the model sees", "Masked reconstruction", "Co-occurrence matrices of the chosen patch"];

  await page.goto(address, { waitUntil: "domcontentloaded" });
  await button("Show").waitFor();
  for (const name of PANELS) check(!(await shown(name).count()), `an empty panel: ${name}`);
  check(!(await button(SENSITIVE).isVisible()), "a button without use");
  await whole("start");

  await page.locator("input[type=file]").first().setInputFiles(image);
  await page.getByText("entropy").waitFor({ timeout: 60000 });
  // The figures come last, and when asked for.
  const figures = button("Results that the model's card states");
  check((await button(SENSITIVE).boundingBox()).y < (await figures.boundingBox()).y, "the button is below the figures");
  check(!(await page.getByText("0.250 to 0.750").isVisible()), "the figures are open");
  await whole("answer");
  await figures.click();
  await page.getByText("0.250 to 0.750").waitFor();
  await page.getByText("The reconstruction is by").waitFor();
  for (const name of PANELS) await shown(name).waitFor();
  for (const feature of ["joint_max", "info_corr2"]) await page.getByText(feature).first().waitFor();
  await button(SENSITIVE).focus();
  await page.keyboard.press("Enter");
  await page.getByText("no outline of a lesion").waitFor({ timeout: 60000 });
  await shown("Occlusion overlay").waitFor();
  await whole("classifier");

  const [seen, rebuilt, matrices] = PANELS;
  await changes(source(rebuilt), "mask ratio", () => move(/Mask ratio/, "Home"));
  await changes(source(rebuilt), "seed", () => move(/Seed/, "End"));
  await changes(table, "features of the chosen patch", () => move(/from the top/, "End"));
  await changes(source(matrices), "matrices of the chosen patch", () => move(/from the left/, "Home"));

  // Another image: nothing of the former one stays.
  await button(/Clear|Remove/).first().click();
  await shown(seen).waitFor({ state: "hidden" });
  await changes(source(seen), "DICOM", () => page.locator("input[type=file]").first().setInputFiles(dicom));
  check(!(await page.getByText("no outline of a lesion").isVisible()), "the overlay of another image is still there");

  await page.getByRole("listbox", { name: "Model" }).or(page.getByLabel("Model", { exact: true })).first().fill(encoder);
  await page.keyboard.press("Enter");
  await page.getByText("has no classifier").waitFor({ timeout: 60000 });
  await shown(rebuilt).waitFor();
  check(!(await page.getByText("entropy").isVisible()), "probabilities without a classifier");
  check(!(await button(SENSITIVE).isVisible()), "a button without use");
  await whole("autoencoder");

  // Every control is a stop of the tab key.
  const stops = new Set();
  await page.locator("body").click({ position: { x: 2, y: 2 } });
  for (let i = 0; i < 40; i++) {
    await page.keyboard.press("Tab");
    stops.add(
      await page.evaluate(() => {
        const at = document.activeElement;
        return at.labels?.[0]?.innerText.trim() || at.ariaLabel || at.innerText?.trim() || at.tagName;
      }),
    );
  }
  const all = [...stops].join(" | ");
  for (const name of ["Model: Hub id", "Show", "Mask ratio", "Seed of the mask", "% from the top", "% from the left"])
    check(all.includes(name), `no tab stop: ${name}; there are ${all}`);
  check(errors.length === 0, `console: ${errors.join("; ")}`);
  await browser.close();
})().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
