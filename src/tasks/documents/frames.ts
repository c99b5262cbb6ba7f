import type { Split } from "./types.js";
import type { ThingType } from "./words.js";

/** A verb with its forms, what it acts on, and the preposition of the second person where it takes one. */
export interface Frame {
  readonly base: string;
  readonly past: string;
  readonly participle: string;
  /** Types of its object. */
  readonly types: readonly ThingType[];
  /** "sent the letter TO whom"; undefined: no second person. */
  readonly preposition?: string;
  /** The sentence sounds unfinished without the second person. */
  readonly needsWhom?: boolean;
}

/** One verb a line: base past participle: types of object: preposition of the second person, "!" where it must be said. */
const TABLE = `
repair repaired repaired: device vehicle furniture building
paint painted painted: picture building furniture vehicle container
clean cleaned cleaned: device vehicle garment furniture
buy bought bought: device vehicle garment furniture animal object: from
sell sold sold: device vehicle garment furniture animal object: to
send sent sent: document container object: to
give gave given: object garment plant container: to!
lend lent lent: device vehicle object tool: to
borrow borrowed borrowed: device vehicle object tool: from
steal stole stolen: object vehicle animal picture
find found found: object document animal tool
lose lost lost: object document garment tool
hide hid hidden: object document container tool
bury buried buried: container object
carry carried carried: container furniture tool
deliver delivered delivered: container furniture food: to
collect collected collected: container document: from
order ordered ordered: device furniture food garment: from
pack packed packed: container tool garment
open opened opened: container document
seal sealed sealed: container document
close closed closed: container building
lock locked locked: container building
weigh weighed weighed: container animal object
measure measured measured: furniture plant building
mend mended mended: garment furniture tool
wash washed washed: garment vehicle
iron ironed ironed: garment
sew sewed sewn: garment
knit knitted knitted: garment
fold folded folded: garment document
wear wore worn: garment
tailor tailored tailored: garment: for
dye dyed dyed: garment
choose chose chosen: garment artwork picture furniture plan
design designed designed: building garment vehicle device
build built built: building furniture vehicle
demolish demolished demolished: building
restore restored restored: building picture furniture
inspect inspected inspected: building device vehicle
rent rented rented: building vehicle device: from
visit visited visited: building event
guard guarded guarded: building object container picture
decorate decorated decorated: building food container
photograph photographed photographed: building animal plant
sketch sketched sketched: building animal plant
draw drew drawn: animal building plant
enlarge enlarged enlarged: building picture
insure insured insured: building vehicle picture
abandon abandoned abandoned: building vehicle plan
renovate renovated renovated: building
survey surveyed surveyed: building
bake baked baked: food: for
cook cooked cooked: food: for
eat ate eaten: food
taste tasted tasted: food
serve served served: food: to
freeze froze frozen: food
prepare prepared prepared: food document event
share shared shared: food document: with
cut cut cut: food plant garment
spoil spoiled spoiled: food plan
burn burned burned: food document
reheat reheated reheated: food
plant planted planted: plant
water watered watered: plant
prune pruned pruned: plant
grow grew grown: plant
uproot uprooted uprooted: plant
label labelled labelled: plant container
transplant transplanted transplanted: plant
feed fed fed: animal
train trained trained: animal
ride rode ridden: vehicle
catch caught caught: animal
rescue rescued rescued: animal
adopt adopted adopted: animal plan: from
raise raised raised: animal
tame tamed tamed: animal
groom groomed groomed: animal
release released released: animal
examine examined examined: animal document device
treat treated treated: animal plant
stroke stroked stroked: animal
breed bred bred: animal
drive drove driven: vehicle
park parked parked: vehicle
steer steered steered: vehicle
tow towed towed: vehicle
load loaded loaded: vehicle
unload unloaded unloaded: vehicle container
crash crashed crashed: vehicle
hire hired hired: vehicle tool: from
polish polished polished: vehicle object furniture
start started started: device event
stop stopped stopped: device vehicle
test tested tested: device vehicle plan
install installed installed: device
assemble assembled assembled: device furniture
dismantle dismantled dismantled: device furniture
adjust adjusted adjusted: device tool
calibrate calibrated calibrated: device
replace replaced replaced: device tool
invent invented invented: device tool
patent patented patented: device tool
operate operated operated: device
break broke broken: device furniture tool
connect connected connected: device
ship shipped shipped: device container vehicle: to
import imported imported: device vehicle food: from
export exported exported: device vehicle food
stack stacked stacked: container furniture
move moved moved: furniture container plant
lift lifted lifted: furniture container
drop dropped dropped: container object tool
varnish varnished varnished: furniture
carve carved carved: furniture picture
upholster upholstered upholstered: furniture
arrange arranged arranged: furniture event
store stored stored: furniture container tool
sharpen sharpened sharpened: tool
oil oiled oiled: tool device
forge forged forged: tool object
use used used: tool device
grind ground ground: tool
write wrote written: document artwork: for
read read read: document
sign signed signed: document
print printed printed: document
copy copied copied: document artwork
translate translated translated: document artwork: for
file filed filed: document
tear tore torn: document garment
publish published published: document artwork
edit edited edited: document artwork
correct corrected corrected: document
scan scanned scanned: document
fetch fetched fetched: document container: from
receive received received: document container: from
accept accepted accepted: document plan: from
reject rejected rejected: document plan: from
return returned returned: document tool garment: to
hand handed handed: document object tool: to!
mail mailed mailed: document container: to!
forward forwarded forwarded: document: to!
dictate dictated dictated: document: to
submit submitted submitted: document plan: to!
present presented presented: document plan: to
show showed shown: document object artwork picture: to!
explain explained explained: plan document: to
describe described described: plan animal: to
discuss discussed discussed: plan document: with
revise revised revised: plan document
approve approved approved: plan document
draft drafted drafted: plan document
propose proposed proposed: plan: to
oppose opposed opposed: plan
support supported supported: plan event
finance financed financed: plan event building
reveal revealed revealed: plan: to
study studied studied: plan document plant
review reviewed reviewed: plan artwork picture document
postpone postponed postponed: event plan
cancel cancelled cancelled: event plan
defend defended defended: plan
criticise criticised criticised: plan artwork
summarise summarised summarised: plan document: for
outline outlined outlined: plan: to
present presented presented: plan: to
organise organised organised: event
attend attended attended: event
host hosted hosted: event
announce announced announced: event plan: to
record recorded recorded: event artwork
film filmed filmed: event animal
miss missed missed: event
leave left left: event building
interrupt interrupted interrupted: event
advertise advertised advertised: event device
chair chaired chaired: event
plan planned planned: event building
sponsor sponsored sponsored: event
televise televised televised: event
sing sang sung: artwork
perform performed performed: artwork
compose composed composed: artwork: for
exhibit exhibited exhibited: picture
frame framed framed: picture
auction auctioned auctioned: picture object
praise praised praised: artwork event
admire admired admired: artwork picture building
acquire acquired acquired: artwork picture object: from
donate donated donated: picture object garment: to
inherit inherited inherited: picture object furniture building: from
damage damaged damaged: picture device furniture
hang hung hung: picture
identify identified identified: artwork picture plant animal
discover discovered discovered: artwork picture plant object
appraise appraised appraised: picture object
pawn pawned pawned: object
engrave engraved engraved: object
polish polished polished: object
throw threw thrown: object
bring brought brought: object food: to
take took taken: object tool: from
trade traded traded: object animal: with
offer offered offered: object food plant: to
promise promised promised: object animal: to!
win won won: object animal
keep kept kept: object animal document
smuggle smuggled smuggled: object animal container
confiscate confiscated confiscated: object container: from
claim claimed claimed: object animal
forget forgot forgotten: object garment document
hold held held: event
notice noticed noticed: object animal plant
recognise recognised recognised: object animal artwork picture
recover recovered recovered: object vehicle: from
remove removed removed: object furniture plant
count counted counted: object container animal
clear cleared cleared: building
heat heated heated: building food
light lit lit: building
search searched searched: building vehicle container
empty emptied emptied: container
fill filled filled: container
wrap wrapped wrapped: object food container
unwrap unwrapped unwrapped: object container
stamp stamped stamped: document container
register registered registered: vehicle document animal
mark marked marked: container document plant
track tracked tracked: animal container
lease leased leased: building vehicle device: to
grant granted granted: document: to!
quote quoted quoted: document artwork: to!
recommend recommended recommended: artwork picture food building: to
demonstrate demonstrated demonstrated: device tool: to
modify modified modified: device vehicle plan
upgrade upgraded upgraded: device
shorten shortened shortened: garment document event
admit admitted admitted: plan: to!
burnish burnished burnished: object
harvest harvested harvested: plant
trim trimmed trimmed: plant
shelter sheltered sheltered: animal plant
evaluate evaluated evaluated: plan device document
circulate circulated circulated: document plan
finish finished finished: artwork picture document building
begin began begun: artwork picture document building
weave wove woven: garment
embroider embroidered embroidered: garment
bottle bottled bottled: food
sample sampled sampled: food
launch launched launched: vehicle plan
anchor anchored anchored: vehicle
commission commissioned commissioned: artwork picture building: from
`;

/** A verb that stands twice counts once. */
function parse(table: string): Frame[] {
  const frames = new Map<string, Frame>();
  for (const line of table.trim().split("\n")) {
    const [forms, types, preposition] = line.split(":").map((part) => part.trim());
    const [base, past, participle] = forms.split(" ");
    if (frames.has(base)) continue;
    frames.set(base, {
      base,
      past,
      participle,
      types: types.split(" ") as ThingType[],
      preposition: preposition?.replace("!", ""),
      needsWhom: preposition?.endsWith("!"),
    });
  }
  return [...frames.values()];
}

/** All verbs of the table, each once. */
export const FRAMES: readonly Frame[] = parse(TABLE);

/** Every eighth verb is held out. */
export function frameSplit(frame: Frame): Split {
  return FRAMES.indexOf(frame) % 8 === 3 ? "held-out" : "train";
}

/** The forms of a made-up verb are regular: its base ends in consonants that take -ed as they are. */
export function regularFrame(base: string, types: readonly ThingType[]): Frame {
  return { base, past: `${base}ed`, participle: `${base}ed`, types };
}

/** What a property's value can be. */
export const VALUE_TYPES = ["name", "place", "code", "date", "amount"] as const;
export type ValueType = (typeof VALUE_TYPES)[number];

/** A property: "the access code of the copper pump is KX-482". */
export interface Property {
  readonly name: string;
  readonly value: ValueType;
  /** Unit of an amount. */
  readonly unit?: string;
  /** Types of thing that have it; undefined: any that can be touched. */
  readonly types?: readonly ThingType[];
  /** Its value can change, so that the current one can be asked for. */
  readonly changes?: boolean;
  readonly split: Split;
}

/** One property a line: name: type of value, unit: types of thing; "*" changes, "h" held out. */
const PROPERTY_TABLE = `
serial number: code: device vehicle tool furniture
inventory number: code:
tracking code *: code: container document
insurance number *: code:
access code *h: code: building container device
permit number h: code: vehicle animal building
owner *: name:
former owner: name:
keeper *: name:
buyer: name:
heir h: name: object furniture building
maker: name: device vehicle garment furniture tool object
author: name: document artwork
painter: name: picture
architect: name: building
price *: amount crowns:
value *h: amount pounds:
rent *: amount crowns: building vehicle
weight: amount kilograms: device vehicle furniture container animal
height: amount metres: building
length: amount pages: document
age: amount years: building vehicle furniture
place of origin: place: device vehicle garment furniture animal object
storage place *: place: picture device furniture container tool object garment
place of discovery h: place: object animal document
date of purchase: date:
date of inspection: date: device vehicle building animal
`;

function parseProperty(line: string): Property {
  const [head, kind, types] = line.split(":").map((part) => part.trim());
  const [, name, flags] = /^(.*?)(?: ([*h]+))?$/.exec(head)!;
  const [value, unit] = kind.split(" ");
  return {
    name,
    value: value as ValueType,
    unit,
    types: types === "" ? undefined : (types.split(" ") as ThingType[]),
    changes: flags?.includes("*"),
    split: flags?.includes("h") ? "held-out" : "train",
  };
}

/** All properties of the table. */
export const PROPERTIES: readonly Property[] = PROPERTY_TABLE.trim().split("\n").map(parseProperty);

export const propertySplit = (property: Property): Split => property.split;
