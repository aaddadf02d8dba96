// BERT's tokeniser: text in, token ids out, the same ids as Hugging Face's `tokenizers`.
//
// Characters are classified by unicode.txt, not by the phone, whose Unicode version is its own. Nothing here needs
// Android. One object serves any number of threads.

package ai.qexport.sample

/** What preprocessing.json says under "tokenizer". */
class Settings(
    val lowercase: Boolean,
    val stripAccents: Boolean,
    val cleanText: Boolean,
    val chineseChars: Boolean,
    val cls: Int,
    val sep: Int,
    val unk: Int,
    val maxLength: Int,
    val maxChars: Int,
    val prefix: String,
    val specialTokens: Map<String, Int>
)

/** Ids and type ids of one text or pair, of one length. */
class Encoded(val ids: LongArray, val types: LongArray)

/** The tables of unicode.txt. */
private class Characters(text: String) {
    private class Ranges {
        private val firsts = ArrayList<Int>()
        private val lasts = ArrayList<Int>()

        fun add(first: Int, last: Int) {
            firsts.add(first)
            lasts.add(last)
        }

        operator fun contains(code: Int): Boolean {
            val at = firsts.binarySearch(code)
            val place = if (at >= 0) at else -at - 2
            return place >= 0 && code <= lasts[place]
        }
    }

    private val ranges = HashMap<String, Ranges>()
    private val order = HashMap<Int, Int>()
    private val split = HashMap<Int, List<Int>>()
    private val lower = HashMap<Int, List<Int>>()

    init {
        for (kind in listOf("drop", "space", "cjk", "mark", "punct")) ranges[kind] = Ranges()
        for (line in text.lineSequence()) {
            val words = line.trim().split(' ')
            if (words.size < 2 || words[0] == "#") continue
            val numbers = words.drop(1).map { Integer.parseInt(it, 16) }
            when (words[0]) {
                "split" -> split[numbers[0]] = numbers.drop(1)
                "order" -> for (code in numbers[0]..numbers[1]) order[code] = numbers[2]
                "lower" -> for (code in numbers[0]..numbers[1] step numbers[2]) {
                    lower[code] = listOf(numbers[3] + code - numbers[0]) + numbers.drop(4)
                }
                else -> ranges.getValue(words[0]).add(numbers[0], numbers[1])
            }
        }
    }

    private val dropped = ranges.getValue("drop")
    private val spaces = ranges.getValue("space")
    private val chinese = ranges.getValue("cjk")
    private val marks = ranges.getValue("mark")
    private val punctuation = ranges.getValue("punct")

    fun isDropped(code: Int) = code in dropped
    fun isSpace(code: Int) = code in spaces
    fun isChinese(code: Int) = code in chinese
    fun isMark(code: Int) = code in marks
    fun isPunctuation(code: Int) = code in punctuation

    fun lower(code: Int): List<Int> = lower[code] ?: listOf(code)

    /** Canonical decomposition and order, Unicode's NFD. */
    fun decompose(codes: List<Int>): List<Int> {
        val out = ArrayList<Int>()
        for (code in codes) {
            val at = code - 0xAC00 // Hangul syllables: arithmetic
            if (at in 0..11171) {
                out.add(0x1100 + at / 588)
                out.add(0x1161 + at % 588 / 28)
                if (at % 28 != 0) out.add(0x11A7 + at % 28)
            } else {
                out.addAll(split[code] ?: listOf(code))
            }
        }
        for (i in 1 until out.size) {
            val code = out[i]
            val own = order[code] ?: 0
            var j = i
            while (own != 0 && j > 0 && (order[out[j - 1]] ?: 0) > own) {
                out[j] = out[j - 1]
                j--
            }
            out[j] = code
        }
        return out
    }
}

/** vocabulary: vocab.txt, one token a line, its id is its line, from 0; characters: unicode.txt. */
class WordPiece(private val settings: Settings, vocabulary: String, characters: String) {
    private val characters = Characters(characters)
    private val ids = HashMap<String, Int>()
    private val special = settings.specialTokens.toList().sortedByDescending { it.first.length }

    init {
        vocabulary.split('\n').forEachIndexed { id, token -> ids[token] = id }
    }

    /** Ids of a text or a pair, with [CLS] and [SEP]. */
    fun encode(text: String, pair: String? = null): Encoded {
        val second = if (pair == null) null else pieces(pair)
        val room = maxOf(0, settings.maxLength - (if (second == null) 2 else 3))
        val (a, b) = truncate(pieces(text), second, room)
        val all = listOf(settings.cls) + a + settings.sep + (if (b == null) emptyList() else b + settings.sep)
        val types = LongArray(all.size) { if (it < a.size + 2) 0L else 1L }
        return Encoded(LongArray(all.size) { all[it].toLong() }, types)
    }

    /** Ids of a text without [CLS] and [SEP]; the name of a special token in it counts as that token. */
    private fun pieces(text: String): List<Int> {
        val out = ArrayList<Int>()
        var begin = 0
        var at = 0
        while (at < text.length) {
            val found = special.firstOrNull { text.startsWith(it.first, at) }
            if (found == null) {
                at++
                continue
            }
            addWords(text.substring(begin, at), out)
            out.add(found.second)
            at += found.first.length
            begin = at
        }
        addWords(text.substring(begin), out)
        return out
    }

    private fun addWords(text: String, out: MutableList<Int>) {
        val word = ArrayList<Int>()
        fun end() {
            if (word.isNotEmpty()) addWord(word, out)
            word.clear()
        }
        for (code in normalize(text)) {
            when {
                characters.isSpace(code) -> end()
                characters.isPunctuation(code) -> {
                    end()
                    word.add(code)
                    end()
                }
                else -> word.add(code)
            }
        }
        end()
    }

    private fun normalize(text: String): List<Int> {
        var codes = codePoints(text)
        if (settings.cleanText) {
            codes = codes.filter { !characters.isDropped(it) }.map { if (characters.isSpace(it)) SPACE else it }
        }
        if (settings.chineseChars) {
            codes = codes.flatMap { if (characters.isChinese(it)) listOf(SPACE, it, SPACE) else listOf(it) }
        }
        if (settings.stripAccents) codes = characters.decompose(codes).filter { !characters.isMark(it) }
        if (settings.lowercase) codes = codes.flatMap { characters.lower(it) }
        return codes
    }

    private fun codePoints(text: String): List<Int> {
        val out = ArrayList<Int>()
        var at = 0
        while (at < text.length) {
            val code = text.codePointAt(at)
            at += Character.charCount(code)
            out.add(if (code in 0xD800..0xDFFF) 0xFFFD else code) // half a surrogate pair is no character
        }
        return out
    }

    /** The longest piece of the vocabulary first, again and again; a word with a part that is none is unknown. */
    private fun addWord(word: List<Int>, out: MutableList<Int>) {
        if (word.size > settings.maxChars) {
            out.add(settings.unk)
            return
        }
        val codes = word.toIntArray()
        val found = ArrayList<Int>()
        var begin = 0
        while (begin < codes.size) {
            var end = codes.size
            var id: Int? = null
            while (end > begin) {
                val piece = String(codes, begin, end - begin)
                id = ids[if (begin == 0) piece else settings.prefix + piece]
                if (id != null) break
                end--
            }
            if (id == null) {
                out.add(settings.unk)
                return
            }
            found.add(id)
            begin = end
        }
        out.addAll(found)
    }

    private companion object {
        const val SPACE = 0x20

        /** Cut one list, or the longer of two, to `room` ids: transformers' "longest_first". */
        fun truncate(first: List<Int>, second: List<Int>?, room: Int): Pair<List<Int>, List<Int>?> {
            if (second == null) return Pair(first.take(room), null)
            if (first.size + second.size <= room) return Pair(first, second)
            var few = minOf(first.size, second.size)
            var many = if (few > room) few else maxOf(few, room - few)
            if (few + many > room) {
                few = room / 2
                many = room / 2 + room % 2
            }
            val firstIsLonger = first.size > second.size
            return Pair(first.take(if (firstIsLonger) many else few), second.take(if (firstIsLonger) few else many))
        }
    }
}
