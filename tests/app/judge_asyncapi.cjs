// Reads a document of AsyncAPI on standard input, and says what the official parser finds in it. Run in the folder in
// which `make asyncapi-parser` put the parser.
const { createRequire } = require("module");
const { Parser } = createRequire(process.cwd() + "/")("@asyncapi/parser");

async function judge() {
  const { document, diagnostics } = await new Parser().parse(require("fs").readFileSync(0, "utf8"));
  const operations = (document ? document.operations().all() : []).map((each) => ({
    name: each.id(),
    action: each.action(),
    channels: each.channels().all().map((channel) => [channel.id(), channel.address() ?? null]),
    messages: each.messages().all().map((message) => ({
      id: message.id(),
      fields: Object.keys(message.payload()?.properties() ?? {}),
      required: message.payload()?.required() ?? [],
    })),
  }));
  const wrong = diagnostics.map(({ code, message, path, severity }) => ({ code, message, severity, path: path.join("/") }));
  process.stdout.write(JSON.stringify({ wrong, operations }));
}

judge();
