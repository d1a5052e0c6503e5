// The demo in a browser, begun with a fine-tuned model whose autoencoder is known. ENCODER has an autoencoder only, PLAIN
// a classifier only; patches are a quarter of the image wide:
// node space_browser.cjs CHROMIUM ADDRESS ENCODER PLAIN IMAGE DICOM WIDTH light|dark FOLDER_FOR_SCREENSHOTS
const { chromium } = require("playwright-core");
const [executablePath, address, encoder, plain, image, dicom, width, colorScheme, folder] = process.argv.slice(2);
const HEIGHT = 800;

(async () => {
  const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
  quiet.push("--disable-component-update", "--disable-sync");
  const browser = await chromium.launch({ executablePath, args: quiet });
  const page = await browser.newPage({ viewport: { width: Number(width), height: HEIGHT }, colorScheme });
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") errors.push(`${message.text()} ${message.location().url}`);
  });
  const check = (fact, what) => {
    if (!fact) throw new Error(what);
  };
  const button = (name) => page.getByRole("button", { name });
  const shown = (name) => page.getByAltText(name, { exact: true }).locator("visible=true");
  const picture = shown("What the model sees");
  const settled = async () => {
    await page.waitForFunction(() => !/processing|queue|Looking at/.test(document.body.innerText), null, { timeout: 60000 });
    await picture.evaluateAll((all) => Promise.all(all.map((one) => one.decode())));
  };
  const whole = async (name) => {
    await settled();
    check(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth), `${name} scrolls sideways`);
    await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
  };
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
  const source = (name) => async () => (await shown(name).count()) && shown(name).first().getAttribute("src");
  const table = () => page.getByRole("gridcell").allInnerTexts();
  // All by keyboard: a tab, of which a narrow page keeps some in a menu; the handle of a slider.
  const open = async (name) => {
    const tab = page.getByRole("tab", { name });
    if (!(await tab.count()) || !(await tab.isVisible())) {
      await button("More tabs").focus();
      await page.keyboard.press("Enter");
      await page.locator(".overflow-dropdown button", { hasText: name }).focus();
    } else await tab.focus();
    await page.keyboard.press("Enter");
  };
  const move = async (name, key) => {
    const slider = page.getByRole("slider", { name }).first();
    await slider.focus();
    await slider.press(key);
    await page.keyboard.press("Tab");
  };
  const tabs = async () => (await page.locator(".tab-container[aria-hidden] button").allInnerTexts()).join();
  const choose = async (model) => {
    await page.getByRole("listbox", { name: "Model" }).or(page.getByLabel("Model", { exact: true })).first().fill(model);
    await page.keyboard.press("Enter");
  };

  await page.goto(address, { waitUntil: "domcontentloaded" });
  await page.getByText("Drop an image, or take an example").waitFor();
  check(!(await picture.count()), "an empty panel");
  const fonts = await page.evaluate(() =>
    ["h1", "h2", "p", "button"].map((name) => getComputedStyle(document.querySelector(name)).fontFamily),
  );
  check(new Set(fonts).size === 1, `several fonts: ${fonts}`);
  const grey = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
  check(colorScheme === "dark" ? Math.max(...grey) < 64 : Math.min(...grey) > 191, `the page is ${grey}`);
  await whole("start");

  // An example is one key away; another image then takes its place.
  await button("A coarse spot in fine").focus();
  await page.keyboard.press("Enter");
  await page.getByText("entropy").waitFor({ timeout: 60000 });
  check(!(await button("A coarse spot in fine").isVisible()), "the examples stay");
  await button(/Clear|Remove/).first().click();
  await page.getByText("Drop an image, or take an example").waitFor();
  check(!(await picture.count()), "the picture stays without an image");
  await page.locator("input[type=file]").first().setInputFiles(image);
  await page.getByText("entropy").waitFor({ timeout: 60000 });
  await page.getByText("How good").waitFor();
  await page.getByText("The reconstruction is by").waitFor();
  if (Number(width) > 1000)
    for (const part of [picture, page.getByText("Class probabilities"), page.getByRole("tab", { name: "Patch" })]) {
      const box = await part.boundingBox();
      check(box.y + box.height <= HEIGHT, `below the fold: ${await part.innerText()}`);
    }
  await whole("answer");

  // Every panel, by keyboard.
  for (const name of ["original", "masked", "reconstruction", "pasted"]) await shown(name).waitFor();
  await changes(source("masked"), "mask ratio", () => move(/Mask ratio/, "Home"));
  await changes(source("masked"), "seed", () => move(/Seed/, "End"));
  await open("Patch");
  for (const name of ["patch, original", "matrix, original", "patch, reconstruction", "matrix, reconstruction"])
    await shown(name).waitFor();
  await changes(source("matrix, original"), "patch by keyboard", () => move(/Down/, "End"));
  // A click, into the second row and the last column.
  await settled();  // the picture is drawn anew, and a click on the former one is lost
  const box = await picture.boundingBox();
  const side = Math.min(box.width, box.height);
  const at = { x: box.width / 2 + 0.4 * side, y: box.height / 2 - 0.2 * side };
  await changes(source("matrix, original"), "patch by click", () => picture.click({ position: at }));
  const [down, right] = await page.getByRole("slider", { name: /Down|Right/ }).evaluateAll((all) => all.map((one) => one.value));
  check(down === "38" && right === "88", `the click chose ${down} % down, ${right} % right`);
  await whole("patch");

  await open("Features");
  await page.getByText("(joint_max)").first().waitFor();
  await changes(table, "features of the chosen patch", () => move(/Right/, "Home"));
  if (Number(width) > 1000) {
    await page.evaluate(() => window.scrollTo(0, document.body.scrollHeight));
    await page.waitForTimeout(300);
    check((await picture.boundingBox()).y >= 0, "the picture is out of sight where results scroll");
    await page.evaluate(() => window.scrollTo(0, 0));
  }
  await whole("features");

  await open("Surprise map");
  for (const name of ["chosen patch", "matrix that is there", "matrix that was foretold"]) await shown(name).waitFor();
  await button(/surprising/).focus();
  await page.keyboard.press("Enter");
  await page.getByText("Surprising is not diseased").waitFor({ timeout: 60000 });
  for (const name of ["most surprising patch", "surprise"]) await shown(name).waitFor();
  await whole("surprise");

  await open("Sensitivity");
  await button(/sensitive/).focus();
  await page.keyboard.press("Enter");
  await page.getByText("no outline of a lesion").waitFor({ timeout: 60000 });
  await shown("sensitivity").waitFor();
  await whole("sensitivity");

  check(!(await page.getByText("0.250 to 0.750").isVisible()), "the figures are open");
  await open("Results on its card");
  await page.getByText("0.250 to 0.750").waitFor();

  // Another image: nothing of the former one stays.
  await button(/Clear|Remove/).first().click();
  await picture.waitFor({ state: "hidden" });
  await page.locator("input[type=file]").first().setInputFiles(dicom);
  await page.getByText("window with centre").waitFor({ timeout: 60000 });
  await open("Sensitivity");
  check(!(await shown("sensitivity").count()), "the overlay of another image is still there");

  // Other models, with fewer panels.
  await choose(encoder);
  await page.getByText("has no classifier").waitFor({ timeout: 60000 });
  await open("Reconstruction");
  await shown("masked").waitFor();
  check(!(await page.getByText("entropy").isVisible()), "probabilities without a classifier");
  check((await tabs()) === "Reconstruction,Patch,Features,Surprise map,Results on its card", `tabs are ${await tabs()}`);
  await whole("autoencoder");
  await choose(plain);
  await page.getByText("names no base_model").waitFor({ timeout: 60000 });
  check((await tabs()) === "Sensitivity,Results on its card", `tabs are ${await tabs()}`);
  check(!(await page.getByRole("slider", { name: /Down/ }).count()), "a patch to choose without an autoencoder");
  await whole("classifier");
  // What fails says so, and no wheel turns on.
  await choose("nowhere/at-all");
  await page.getByText("is not offered here").first().waitFor({ timeout: 60000 });
  await page.getByText("No answer: the message says why").waitFor();
  await choose(encoder);
  await page.getByText("has no classifier").waitFor({ timeout: 60000 });
  await open("Reconstruction");
  await settled();

  // Every control is a stop of the tab key, and nothing is asked anew on the way.
  let asked = 0;
  page.on("request", (request) => (asked += request.url().includes("/queue/join")));
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
  for (const name of ["Model", "Down, %", "Right, %", "Mask ratio", "Seed of the mask", "Patch"])
    check(all.includes(name), `no tab stop: ${name}; there are ${all}`);
  check(asked === 0, `${asked} questions by the tab key alone`);
  check(errors.length === 0, `console: ${errors.join("; ")}`);
  await browser.close();
})().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
