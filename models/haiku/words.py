"""Words that a prompt may ask for, beyond those of topics.py. All lists are this project's own writing."""

NOUNS = """
accident account actor address adventure advice airport alarm album alley almond alphabet ambition ambulance anchor angel ankle
answer antelope apple apricot arch architect arm armor army arrow artist aunt author autumn avalanche avenue award axe baby
backpack bacon badge bag balcony ball ballet balloon bamboo banana band bandage banjo bank banner barber bargain barn barrel
basement basket bath battery battle bay beach bead beak bear beard beast beauty beaver bedroom beetle beginning belief bell belt bench
berry bicycle billboard birthday biscuit bishop blanket blizzard blood blouse board boat body bonfire boot border bottle boulder boundary
bowl box boy bracelet brain brass brick bride broom brother brush bubble bucket buffalo builder building bullet bus bush butcher butter
button cabbage cabin cabinet cable cactus cage cake calculator calf camel camera camp canal canary candy cannon canvas canyon cap captain car caravan
card career carpenter carpet carrot cart cartoon cash castle cat cathedral cattle cave ceiling celery cellar cello cement cemetery century
ceremony chain chair chalk champion chance channel chaos chapel chariot cheek cheese chef cherry chess chest chicken chief chimpanzee chin chocolate
choir church cigar cinema circus citizen clarinet classroom claw clay clerk cliff clinic cloak cloth clown club coach coal coast
cobweb cockroach coconut coffin coin collar college color column comet comma committee companion company compass competition computer concert
condition conscience container contract conversation cookie copper corner cottage cotton cough counter country courage cousin cow coyote cradle craft crane crayon creature
credit crime crocodile crown crystal cube cucumber culture curtain customer cyclone dagger dairy dam dancer danger daughter daylight death debt decade decision deer
democracy dentist desire dessert destiny detective devil diamond diary dictionary dinner dinosaur diploma direction disaster discovery disease distance doctor dolphin
dominoes donkey doubt dough dragon drawing dress drink driver drum duck dungeon eagle ear earth earthquake echo eclipse economy editor education
egg eggplant elbow electron elephant elevator emerald emotion emperor empire energy engine engineer envelope equation error eternity evidence
evil examination example excuse exit experience experiment explosion eye eyebrow fabric factory failure fairy faith falcon fame family fashion father faucet
feast fence ferry festival fiction fiddle finger finish fisherman fist flag flame flamingo flashlight flood floor flute folder food
foot football forehead forgiveness fork fortune fossil fountain fox fraction freedom freight fridge fruit furniture future gallery game garage
garbage garment gas gasoline gazelle general genius geography geometry ghost giant gift ginger giraffe girl glacier glass glove glue goal goat gold
goose gorilla gossip government grain grammar grandfather grape grass grasshopper gravel gravity grocery ground guard guest guitar
gum gymnast habit hair hallway hamburger hammer hamster handkerchief handle happiness harbor harmony harp hat hawk head health
heaven hedge hedgehog heel height helicopter helmet hero hiccup highway hinge history hobby hockey holiday honesty honor hood hook
hope horizon horn hospital hotel human humor hunger hunter hurricane husband hut idea imagination infant ink insect invention iron ivory jacket
jaguar jail jam jar jaw jealousy jelly jellyfish jewel job joke journal joy judge juice jungle jury justice kangaroo ketchup key kidney king kingdom
kitten knee knight knot knowledge koala label labor ladder lady ladybug lamb language laptop laughter laundry lava law lawn lawyer leader leather
lecture leg legend lemon leopard lesson letter lettuce liberty license lid lightning limit linen lion lip liquid list lizard lobster lock locomotive
locket logic lottery luck luggage lumber lunch lung machinery magazine magic magnet mail mailbox majority mallet mango mansion manuscript marathon
marble market marriage mask mathematics mattress mayor meal measure meat mechanic medal medicine melody member merchant mercy message metal microphone microscope
midnight milk mineral miracle mirror mission mistake mixture moment monarch money monkey monster month monument mood mosquito mother motion
motorcycle mountain mouse mouth movie mud mule muscle museum mushroom musician mustache mustard mystery nail napkin nation
nature navy neck necklace needle neighbor neighborhood nephew nerve news newspaper nickel niece nightmare noise noodle north nose notebook novel nurse
nut oak oasis oath obstacle octopus office officer oil olive omelet onion opera opinion opportunity orange orchard orchestra
ornament orphan ostrich otter oven owner oxygen oyster package page pain paint painter painting pajamas palace palm pan pancake panda
panic panther paper parachute parade paradise paragraph parent park parrot parsley partner party passenger passion passport pasta pastry patch
pavement payment pea peace peach peacock peanut pear pearl pebble pelican pen penalty pencil penguin penny pepper perfume permission person pharmacy
philosophy photograph phrase physics pickle picnic picture pie pig pigeon pillar pilot pin pineapple pioneer pipe pirate pistol pizza plane
plant plastic plate platter player playground pleasure plum plumber pocket poet poetry poison polar police politics pony pool popcorn population porcelain porch
porcupine port portrait position postcard potato pottery powder practice president pressure price priest prince princess principle printer
prison prize problem profession professor profit programmer promise proof prophet protest proverb psychology pudding pulse pumpkin punishment pupil puppet puppy
purple purpose purse puzzle pyramid python quality quantum quarrel quarter queen question quilt rabbit raccoon race radar radio radish rail
railroad rainbow raisin rat ratio raven razor reason rebel receipt recipe record reed referee refuge refugee religion remedy reptile
republic rescue reward rhinoceros rhythm ribbon rice riddle rifle ring river road roast robot rocket romance roof rope rose
routine ruby rug ruler sadness saddle safety sailor salad salary salmon sandal sandwich sapphire satellite saturday sauce sausage saxophone scale scar scarf
science scientist scissors scorpion scout sculptor sculpture seahorse seal seat secretary security seesaw sentence sergeant servant
shadow shampoo shark sheep sheet sheriff shield shirt shoe shop shoulder shovel shrimp shuttle sidewalk signal signature silk silver singer sister skeleton
skill skin skirt skull skunk skyscraper slipper smell smile snake soap soccer society sock sofa soldier solution son soul soup south
spaceship spaghetti spark spider spinach spirit sponge spoon sport spy squid squirrel stadium stage staircase stamp statue steak steel stomach
stool story stranger strawberry street student submarine subway success sugar suit suitcase sultan sunday supper surgeon surprise sweater swimmer sword
syllable symphony syrup system table tablet tadpole tailor talent tambourine target tavern tax teacher team tear telephone television temper
tent territory thief thigh thirst thread throat throne thumb thunderstorm ticket tiger tile title toast tobacco toe tomato tomb tomorrow tongue
tool tooth toothbrush torch tornado tortoise tourist tower town toy tractor tradition traffic tragedy trail traitor trap treasure treaty
triangle trombone trophy trouble trousers truck trumpet trust truth tuba tuesday tulip turkey turnip turtle twin typewriter tyrant umbrella uncle
unicorn uniform universe university vacation vacuum valley vampire vanilla vase vegetable vehicle veil velvet vengeance victory video village
vine vinegar violin virtue virus vision vitamin volcano volleyball vote voyage waffle wagon waist waiter wallet walnut walrus war warehouse warrior
wasp watermelon wealth weapon weather wedding weekend weight wealth whale wheel wheelbarrow whiskey whistle widow wife wilderness willow window wine
winner wisdom witch witness wizard wolf woman wonder wool worker world worm wound wreath wrist writer yacht yard year yesterday yogurt
youth zebra zipper zoo zucchini kernel tensor matrix vector pixel pointer compiler register thread processor gradient neuron algorithm kimono bonsai origami
samurai sushi tofu haiku sonnet stanza lyric ballad chorus alto tempo waltz tango polka disco jazz
"""

VERBS = """
accept achieve admire admit adore advance agree allow amaze amuse announce appear applaud apologize approach argue arrange ask attempt avoid balance
bathe beg behave believe belong blame bless boast borrow bounce bow break breathe bring bruise build bury buy calculate call
capture care carry carve catch celebrate challenge cheat cheer chew choose chop claim clap clean climb collapse collect combine
come compare complain complete conclude confess confuse connect consider contain continue convince cook copy correct cough create crush cry cure curl cut
dance dare decide decorate defend delay deliver demand deny depend describe deserve destroy develop die disagree disappear discover discuss divide donate
drag draw dream dress drink drive drown earn eat embrace emerge encourage enjoy enter entertain erase escape examine excite
exist expect explain explode explore express fail faint feed feel fetch fight fill find fix flee flow fold forget forgive
frighten gaze give glance greet grieve grin grumble guess guide hammer handle happen harvest hate heal hear help hesitate hug imagine improve include
increase inform inherit inspire interrupt introduce invent invite jog join joke juggle jump kick kneel knock know laugh lead learn leave lend lick lie
lift like live look lose love manage march marry matter measure meet mend mention mix mourn move multiply mutter need neglect obey
observe obtain offer order overcome pack paint pardon peel perform persuade plan plant play polish ponder practice praise pray predict prefer prepare
pretend prevent produce promise protect prove provide publish pull punish push puzzle quarrel question quit reach realize receive recognize recover refuse regret
rejoice relax rely remind remove repair repeat replace reply resist respect reveal rhyme ride roam roast rob rub ruin sacrifice sail save say scold
scratch scream scribble search see seek sell send separate serve sew shake shave shelter shout shrink shrug sigh sit skate sketch slide smell
sneeze sob solve speak spell spill spread squeeze stagger stare start starve steal stumble suffer suggest surrender survive suspect swallow swear sweep swim
taste teach tear tease tell thank think throw tickle translate travel treat trust try understand unite value visit vote wail walk want
warn wash watch wear weave weep welcome win wipe wish wonder work worry wrap wrestle write yell yield
"""

ADJECTIVES = """
able absent absolute active afraid alive alone ambitious ample angry anonymous anxious ashamed asleep attentive average awake aware awful awkward
beautiful better blank blind bold boring brave brilliant broad broken calm careful careless cautious certain charming cheap cheerful chilly civil
clean clever clumsy common complete confident cosmic courageous cozy crazy crucial cruel cunning damp daring dead deaf dear delicious dependent desperate
different difficult diligent dirty disappointed divine dizzy double dreadful drunk dull eager earnest eastern elastic elegant eloquent
enchanted energetic enormous entire equal essential eternal evil excellent exotic expensive extra fair faithful false familiar famous fancy fantastic
fatal favorite feeble female fierce final fine flat flexible fluent fluffy foreign formal free frequent friendly frozen full funny furious fuzzy
generous genuine glad glorious good graceful grateful great greedy grumpy guilty handsome harmless harsh healthy hectic helpful helpless heroic honest
hopeful horrible hostile huge humorous hungry ideal identical idle ignorant ill illegal immense important impossible incredible independent
innocent intelligent invisible jealous jolly joyful juicy keen large lavish lazy legal liquid lively local logical loose lovely lucky
luminous luxurious mad magical magnificent male marvelous massive meager mechanical merry mighty miserable modern modest moral musical mysterious mystic naive
naked nasty natural naughty nearby neat nervous new nice nimble noble normal northern numb obedient obscure obvious opposite ordinary
original outrageous outside pathetic peaceful peculiar perfect permanent personal playful pleasant polite poor popular positive possible powerful practical
precious pretty primitive private probable profound proper public pure quaint rapid rare raw ready real reasonable
rebellious reckless reliable reluctant remarkable ridiculous right rigid romantic rotten rough royal rude rural sad scarlet scary serene
serious shabby shallow sharp shiny short sick significant silly sincere skillful sleepless slight slim smart smooth solar solemn solid sore sour
special spicy splendid spotless stale steep sticky stiff stingy stormy straight strict stubborn stupid stylish subtle superb suspicious swift
sympathetic talkative tame tall tasty terrible thankful thin thirsty thorough thoughtful tidy tight timid tiny tough tragic transparent tricky
tropical turquoise ugly ultimate unable uncertain unhappy unique universal unknown unusual upset urban urgent useful useless
usual vague vain valuable various vicious victorious violet visible vital vivid vulgar vulnerable weak wealthy weary weird western
whole wicked wide willing wonderful wooden worthy wrong young zealous
"""

OTHERS = """
above across afternoon almost already although altogether always among anyway anywhere apart around away barely because beneath beside beyond
carefully clearly completely constantly daily deeply despite easily else enough entirely especially eventually ever everybody everything everywhere exactly
finally forever gently goodbye gradually happily hardly hello hence however hundred immediately indeed instead into later maybe
meanwhile million mostly nearly neither never nevertheless nobody none nothing nowhere obviously occasionally often only otherwise outside
perhaps please probably quickly quietly quite rarely rather really sadly seldom simply sincerely slowly softly somebody somehow sometimes
somewhere soon suddenly surely thanks therefore thousand together toward twice unless until upward usually whatever whenever wherever whether
while why within without yes yet
well-known half-moon sky-blue sun-dried ice-cold bird-song deep-sea old-fashioned mother-in-law self-made high-speed long-lost snow-white
tea-time night-light slow-motion wind-swept hard-won far-off free-range merry-go-round forget-me-not
"""

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell(number):
    """0 to 99 in letters: 42 is "forty-two"."""
    if number < 20:
        return UNITS[number]
    tens = TENS[number // 10 - 2]
    return tens if number % 10 == 0 else f"{tens}-{UNITS[number % 10]}"


NUMBERS = [spell(n) for n in range(100)]
