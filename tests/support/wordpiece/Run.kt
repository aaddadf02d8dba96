// run SETTINGS vocab.txt unicode.txt: the records of run.c on standard input, the same lines out.
import ai.qexport.sample.Settings
import ai.qexport.sample.WordPiece
import java.io.File

fun main(words: Array<String>) {
    val lines = File(words[0]).readLines() // what the flags are, then NAME TAB ID of each special token
    val flags = lines[0].split(' ')
    val special = lines.drop(1).map { it.split('\t') }.associate { Pair(it[0], it[1].toInt()) }
    val settings = Settings(
        flags[0] == "1", flags[1] == "1", flags[2] == "1", flags[3] == "1", flags[4].toInt(), flags[5].toInt(),
        flags[6].toInt(), flags[7].toInt(), flags[8].toInt(), "##", special
    )
    val tokenizer = WordPiece(settings, File(words[1]).readText(), File(words[2]).readText())
    val records = String(System.`in`.readBytes(), Charsets.UTF_8).split('\u0000')
    val out = StringBuilder()
    for (i in 0 until records.size - 1 step 2) {
        val found = tokenizer.encode(records[i].substring(2), if (records[i][0] == '1') records[i + 1] else null)
        out.append(found.ids.joinToString(" ")).append(" | ").append(found.types.joinToString(" ")).append('\n')
    }
    print(out)
}
