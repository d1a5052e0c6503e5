// The demo in a browser: node space_browser.cjs CHROMIUM ADDRESS MODEL IMAGE WIDTH light|dark FOLDER_FOR_SCREENSHOTS
const { chromium } = require("playwright-core");
const [executablePath, address, model, image, width, colorScheme, folder] = process.argv.slice(2);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: { width: Number(width), height: 900 }, colorScheme });
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => {
    // Fonts and manifests of other hosts cannot be had without a network.
    if (message.type() === "error" && !message.text().includes("ERR_") && !message.text().includes("Failed to load resource"))
      errors.push(message.text());
  });
  const check = (fact, what) => {
    if (!fact) throw new Error(what);
  };
  const narrow = async () =>
    check(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth), "scrolls sideways");

  await page.goto(address, { waitUntil: "domcontentloaded" });
  await page.getByRole("button", { name: "Show", exact: true }).waitFor();
  await narrow();
  await page.locator("input[type=file]").first().setInputFiles(image);
  await page.getByText("entropy").waitFor({ timeout: 60000 });
  await page.getByText("no pretraining/ folder").waitFor();
  await page.getByRole("button", { name: /Where is the model sensitive/ }).click();
  await page.getByText("no outline of a lesion").waitFor({ timeout: 60000 });
  await page.screenshot({ path: `${folder}/classifier.png`, fullPage: true });

  await page.getByLabel("Model: Hub id or local folder").fill(model);
  await page.getByRole("button", { name: "Show", exact: true }).click();
  await page.getByText("joint_max").first().waitFor({ timeout: 60000 });
  const before = await page.locator(".grid-container img, .gallery-item img, img").evaluateAll((all) => all.map((i) => i.src));
  const slider = page.getByRole("slider", { name: /Mask ratio/ }).first();
  await slider.focus();
  await slider.press("Home");
  await page.getByRole("button", { name: "Show", exact: true }).click();
  await page.waitForFunction(
    (old) => {
      const now = [...document.querySelectorAll("img")].map((i) => i.src);
      return now.length && now.some((src) => !old.includes(src));
    },
    before,
    { timeout: 60000 },
  );
  await narrow();
  // By keyboard alone: every control is a stop of the tab key.
  const stops = new Set();
  await page.locator("body").click({ position: { x: 2, y: 2 } });
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press("Tab");
    stops.add(await page.evaluate(() => (document.activeElement.innerText || document.activeElement.ariaLabel || "").trim()));
  }
  for (const name of ["Show", "Where is the model sensitive? (slower)"]) check(stops.has(name), `no tab stop: ${name}`);
  await page.waitForTimeout(1000); // leaving a slider asks anew
  await page.waitForFunction(() => !/processing|queue/.test(document.body.innerText), null, { timeout: 60000 });
  await page.screenshot({ path: `${folder}/autoencoder.png`, fullPage: true });
  check(errors.length === 0, `console: ${errors.join("; ")}`);
  await browser.close();
})().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
